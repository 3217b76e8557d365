"""The error that says what to do about it."""


class UserError(RuntimeError):
    """Something that whoever runs a command can mend; its message says how.

    `wm-gym` prints it without a traceback, as it does ValueError, OSError and ImportError.
    """

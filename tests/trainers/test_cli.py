"""The command line: what is said of an error, and in how many lines."""

from __future__ import annotations

import sys

import pytest

from trainers import cli
from wm_gym.errors import UserError


def run(monkeypatch, error: BaseException) -> None:
    """Run a command that raises `error`."""

    def presets() -> None:
        raise error

    monkeypatch.setattr(cli, "run_presets", presets)
    monkeypatch.setattr(sys, "argv", ["wm-gym", "presets"])
    cli.main()


@pytest.mark.parametrize(
    "kind", [ValueError, OSError, FileNotFoundError, PermissionError, ImportError, UserError]
)
def test_an_error_that_the_user_can_mend_is_told_in_a_line(monkeypatch, kind):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, kind("do this"))
    assert ended.value.code == "wm-gym: do this"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"):
        run(monkeypatch, RuntimeError("a bug"))


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("WM_GYM_TRACEBACK", "1")
    with pytest.raises(UserError, match="do this"):
        run(monkeypatch, UserError("do this"))

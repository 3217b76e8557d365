"""Policies: one file per family, behind a protocol of two methods."""

from policies.base import Act, Policy
from policies.token import TokenVLA, TokenVLAConfig

__all__ = ["Act", "Policy", "TokenVLA", "TokenVLAConfig"]

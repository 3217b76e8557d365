"""What a trainer may ask of a policy: two methods and three facts, for any kind of action head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor


class Act(NamedTuple):
    """One decision a row: a chunk of actions, and what is needed to speak of its probability."""

    action: Tensor  # (n, k, 7) float32 in [-1, 1]
    sample: Tensor  # (n, ...) opaque to trainers: hand it back to `log_prob`
    log_prob: Tensor  # (n, events) float32, at the policy's temperature


@runtime_checkable
class Policy(Protocol):
    """A vision-language-action policy: pictures and instructions in, chunks of actions out."""

    chunk: int
    """Control steps decided at once (k)."""
    event_steps: Tensor
    """(events,) int64: the step of the chunk an event belongs to, so that trainers can mask it."""

    def act(
        self,
        obs: Mapping[str, Any],
        instructions: Sequence[str],
        *,
        greedy: bool = False,
        generator: Generator | None = None,
    ) -> Act:
        """Decide for every row; obs["image"] is (n, H, W, 3) uint8, tensor or array."""
        ...

    def log_prob(
        self, obs: Mapping[str, Any], instructions: Sequence[str], sample: Tensor
    ) -> Tensor:
        """Log-probability of every event of `sample`, (n, events) float32, with gradient."""
        ...

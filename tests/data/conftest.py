"""Tiny episodes whose pictures and actions say where they came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wm_gym.data import Episode


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """Frame i of an episode is filled with 10 * number + i, action i with number + i / 10."""

    def make(number: int = 0, t: int = 3, success: tuple[int, ...] = (), **facts) -> Episode:
        fill = np.arange(t + 1, dtype=np.uint8) + 10 * number
        done = np.zeros(t, bool)
        done[list(success)] = True
        return Episode(
            frames=np.broadcast_to(fill[:, None, None, None], (t + 1, 4, 4, 3)).copy(),
            actions=np.repeat(np.arange(t, dtype=np.float32)[:, None] / 10 + number, 7, 1),
            success=done,
            **facts,
        )

    return make

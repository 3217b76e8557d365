"""A scripted world with pictures as large as SB3's convolutions want them."""

from __future__ import annotations

import numpy as np

from tests.fakes import ScriptedEnv, fake_pool

NEVER = 99


class Large(ScriptedEnv):
    """Pictures of 40 pixels, since SB3's convolutions take none below 36."""

    def __init__(self, wins: list[int], **options) -> None:
        pool = fake_pool(image_size=40)
        super().__init__(wins, starts=pool, autoreset_mode="SameStep", **options)

    def picture(self, rows: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
        return super().picture(rows, elapsed).repeat(5, axis=1).repeat(5, axis=2)

"""Reading bodies from pictures: what is shown, in which units, and that it is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.data.episode import Episode
from wm_gym.data.windows import Windows
from wm_gym.world_model.dynamics import Reader
from wm_gym.world_model.reading import ReadingTrainingConfig, fit_reader, moments


def seen_at(frame: int, t: int = 6) -> Episode:
    """Frame i has the level frame + i, and x is measured as that in tens."""
    level = np.arange(frame, frame + t + 1, dtype=np.uint8)[:, None]
    frames = np.broadcast_to(level[:, :, None, None], (t + 1, 16, 16, 3)).copy()
    actions = np.zeros((t, 7), np.float32)
    return Episode(frames, actions, np.zeros(t, bool), low_dim={"x": 10 * np.float32(level)})


def drawn(windows: Windows, count: int, begun: float) -> tuple[list[list[int]], list[float]]:
    """Levels of the pictures of moments, and what is measured there."""
    pictures, bodies = moments(windows, count, begun, torch.Generator().manual_seed(0))
    assert pictures.shape == (count, 1 + windows.memory, 3, 16, 16)
    shown = (pictures[:, :, 2, 15, 15] + 1) * 127.5
    return shown.round().int().tolist(), bodies.flatten().tolist()


def test_a_moment_is_the_first_picture_and_the_last_ones_and_the_body_that_they_show():
    windows = Windows([seen_at(0), seen_at(100)], memory=3, block=4, body=("x",))
    only = windows.reweight(torch.eye(12)[6 + 4])  # the second's frame 4
    assert drawn(only, 2, begun=0.0) == ([[100, 102, 103, 104]] * 2, [1040.0] * 2)
    assert drawn(only, 2, begun=1.0) == ([[104] * 4] * 2, [1040.0] * 2)
    shown, bodies = drawn(only, 2000, begun=0.3)
    assert sum(s == [104] * 4 for s in shown) == pytest.approx(600, abs=60)
    assert bodies == [1040.0] * 2000


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader(pictures=3, outer=8, body=1, side=2)


LEARNT = ReadingTrainingConfig(steps=150, batch_size=32, begun=0.5)


def test_it_learns_what_pictures_show_in_units_of_the_scale():
    learner = reader()
    windows = Windows([seen_at(0, 60), seen_at(100, 60)], memory=2, body=("x",))
    mean, std = torch.tensor([800.0]), torch.tensor([500.0])
    error = fit_reader(learner, windows, mean, std, (), LEARNT, seed=0)
    assert error < 0.1  # 1 before, the levels being 0 to 60 and 100 to 160
    assert not any(p.requires_grad for p in learner.parameters())
    picture = torch.full((1, 3, 3, 16, 16), 130 / 127.5 - 1)
    assert learner(picture).item() == pytest.approx((1300 - 800) / 500, abs=0.2)


def test_the_same_seed_learns_the_same():
    windows, quick = Windows([seen_at(0)], memory=2, body=("x",)), ReadingTrainingConfig(steps=2)
    scale, found = (torch.zeros(1), torch.ones(1)), []
    for seed in (1, 1, 2):
        learner = reader()
        fit_reader(learner, windows, *scale, (), quick, seed)
        found.append(learner.enter.weight.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Silent(torch.nn.Linear):
    """Reads 0 for everything, whatever its weights."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return 0 * super().forward(pictures[:, 0, 0, 0, :1])


def test_places_count_as_much_more_as_is_said():
    """Of 3 and 8, ten times: (3 + 10 x 8) / 11."""
    frames, still = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((2, 7), np.float32)
    told = {"x": np.full((3, 1), 3, np.float32), "place": np.full((3, 1), -8, np.float32)}
    windows = Windows([Episode(frames, still, np.zeros(2, bool), low_dim=told)], body=tuple(told))
    config = ReadingTrainingConfig(steps=1, batch_size=4)
    error = fit_reader(Silent(1, 2), windows, torch.zeros(2), torch.ones(2), [1], config, seed=0)
    assert error == pytest.approx(83 / 11)

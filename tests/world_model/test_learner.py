"""The learner: one optimiser step, and what each part is told, asked and judged by in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.world_model import training
from wm_gym.world_model.dynamics import State
from wm_gym.world_model.learning import split
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.training import Learner, WorldModelTrainingConfig


def counting(first: int, t: int = 20) -> Episode:
    """Frame i has the level first + i, which is measured as x, and action i the value."""
    level = np.arange(first, first + t + 1, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(level, (t + 1, 16, 16, 3)).copy()
    actions = np.arange(first, first + t, dtype=np.float32)[:, None].repeat(7, 1)
    return Episode(frames, actions, np.zeros(t, bool), low_dim={"x": np.float32(level[:, :, 0, 0])})


def batch_of(episodes: list[Episode], starts: list[int], block: int) -> dict[str, torch.Tensor]:
    """Clips of `block` steps from these places on."""
    return Windows(episodes, block=block, body=("x",)).batch(starts)


def levels(pictures: torch.Tensor) -> list:
    """Grey levels of flat pictures (..., 3, H, W) in [-1, 1]."""
    return ((pictures[..., 0, 0, 0] + 1) * 127.5).round().int().tolist()


# The optimisers.


def test_every_weight_has_one_optimiser_and_vectors_have_adamw(small):
    learner = Learner(small(0), WorldModelTrainingConfig())
    names = {id(p): name for name, p in learner.model.named_parameters()}
    muon, adamw = (
        [names[id(p)] for group in o.param_groups for p in group["params"]]
        for o in learner.optimizers
    )
    before = ("transition.motion.", "encoder.body.")  # learnt by themselves, and frozen
    alone = {name for name in names.values() if name.startswith(before)}
    assert sorted(muon + adamw) == sorted(set(names.values()) - alone)
    assert len(alone) == 3 * 8 + 30  # three networks of four layers, and how a body is read
    assert "transition.vector.weight_hh" in muon and "encoder.enter.weight" in muon
    apart = {"renderer.mean", "renderer.leave.weight", "renderer.layout.weight", "encoder.place"}
    assert {n for n in adamw if dict(learner.model.named_parameters())[n].dim() > 1} == apart


def test_both_rates_follow_the_schedule(small):
    config = WorldModelTrainingConfig(steps=30, warmup=10, learning_rate=0.01, most_clips=1)
    learner = Learner(small(0), config)
    batch = batch_of([counting(0)], [0], block=2)
    for step, share in ((0, 0.1), (4, 0.5), (20, 0.525)):
        learner.step(batch, step, torch.Generator().manual_seed(0))
        rates = [group["lr"] for o in learner.optimizers for group in o.param_groups]
        assert rates == pytest.approx([0.01 * share, 0.005 * share])


def test_gradients_are_clipped_and_fresh_at_every_step(small):
    learner = Learner(small(0), WorldModelTrainingConfig(grad_clip=1e-3))
    batch = batch_of([counting(0)], [0], block=2)
    for step in range(3):
        learner.step(batch, step, torch.Generator().manual_seed(0))
        squares = [p.grad.square().sum() for p in learner.model.parameters() if p.grad is not None]
        assert 0 < sum(squares) ** 0.5 <= 1e-3 * 1.001


def test_the_gradients_of_the_parts_of_a_batch_are_averaged(small):
    batch = batch_of([counting(0)], [0, 5], block=2)
    halves = split(batch, 2)
    found = []
    for part in halves:
        model = small(0)
        config = WorldModelTrainingConfig(grad_clip=1e9)
        loss = Learner(model, config).step(part, 0, torch.Generator().manual_seed(0))
        found.append((loss, model.renderer.leave.bias.grad))
    model = small(0)
    learner = Learner(model, WorldModelTrainingConfig(grad_clip=1e9, parts=2, body_noise=0.0))
    loss = learner.step(batch, 0, torch.Generator().manual_seed(0))
    assert loss == pytest.approx((found[0][0] + found[1][0]) / 2, rel=0.02)
    expected = (found[0][1] + found[1][1]) / 2
    torch.testing.assert_close(model.renderer.leave.bias.grad, expected)


def test_averaged_weights_are_lent_and_taken_back(small):
    learner = Learner(small(0), WorldModelTrainingConfig(ema=0.5))
    for step in range(3):
        batch = batch_of([counting(0)], [step], block=3)
        learner.step(batch, step, torch.Generator().manual_seed(step))
    weights = learner.model.renderer.leave.bias
    before, average = weights.clone(), learner.average.shadow_params
    with learner.averaged():
        inside = [p.clone() for p in learner.model.parameters()]
    assert all(torch.equal(p, a) for p, a in zip(inside, average, strict=True))
    assert torch.equal(weights, before)
    assert any(
        not torch.equal(p, a) for p, a in zip(learner.model.parameters(), inside, strict=True)
    )


# What is learnt from what.


def watched(model: WorldModel, monkeypatch) -> dict[str, list]:
    """Make grids that remember an action and the body they followed; list what each part is given.

    "drawn" is of every picture: the action and the body that its grid remembers, and its own body.
    """
    seen = {"read": [], "told": [], "drawn": [], "shown": [], "anchor": [], "valid": []}
    encode, render = model.encoder.forward, model.renderer.forward

    def encoder(pictures):
        seen["read"] += levels(pictures)
        return encode(pictures)

    def recall(state, action):
        seen["told"].append(state)
        return action[:, :1].expand_as(state.vector)

    def follow(grid, vector, body, action):
        grid = torch.zeros_like(grid, dtype=torch.float32)
        grid[:, 0], grid[:, 1] = action[:, :1, None], body[:, :1, None]
        return State(grid, vector, body)

    def renderer(grid, body):
        seen["drawn"] += torch.cat([grid[:, :2, 0, 0], body], 1).int().tolist()
        return render(grid, body)

    def loss(drawn, clean, anchor, valid, _):
        seen["shown"] += levels(clean)
        seen["anchor"] += levels(anchor)
        seen["valid"] += valid.tolist()
        return drawn.mean()

    monkeypatch.setattr(model.encoder, "forward", encoder)
    monkeypatch.setattr(model.transition, "recall", recall)
    monkeypatch.setattr(model.transition, "follow", follow)
    monkeypatch.setattr(model.renderer, "forward", renderer)
    monkeypatch.setattr(training, "frame_loss", loss)
    return seen


def test_every_frame_is_learnt_by_the_action_that_led_to_it_and_the_body_that_it_shows(
    small, monkeypatch
):
    model = small(0)
    seen = watched(model, monkeypatch)
    learner = Learner(model, WorldModelTrainingConfig(pictures=4))
    # One clip of each; the second ends after 10 steps.
    batch = batch_of([counting(0), counting(100)], [5, 20 + 10], block=12)
    for seed in range(30):
        learner.step(batch, 0, torch.Generator().manual_seed(seed))
    assert seen["read"][:2] == [[0, 2, 3, 4, 5], [100, 107, 108, 109, 110]]
    there = [
        (*drawn, shown, anchor)
        for drawn, shown, anchor, valid in zip(
            seen["drawn"], seen["shown"], seen["anchor"], seen["valid"], strict=True
        )
        if valid
    ]
    first = {(i, i + 1, i + 1, i + 1, 0) for i in range(5, 17)}
    second = {(i, i + 1, i + 1, i + 1, 100) for i in range(110, 120)}
    assert set(there) == first | second
    assert len(there) < 30 * 4  # the second's padding is not valid


def test_every_step_is_told_the_true_body_and_fresh_noise_of_a_hundredth(small, monkeypatch):
    """Both in its standard deviations: x is 10 on average, give or take 2."""
    model = small(0)
    model.body_mean.fill_(10.0), model.body_std.fill_(2.0)
    seen = watched(model, monkeypatch)
    learner = Learner(model, WorldModelTrainingConfig())
    batch = batch_of([counting(0)], [5], block=12)
    for seed in range(60):
        learner.step(batch, 0, torch.Generator().manual_seed(seed))
    told = torch.stack([state.body[0, 0] for state in seen["told"]]).view(60, 12)
    noise = told - torch.tensor([(x - 10) / 2 for x in range(5, 17)])
    assert noise.std().item() == pytest.approx(0.01, rel=0.1)
    assert noise.mean().abs() < 0.002
    assert len(noise.unique()) > 700  # of 720


def test_every_step_goes_on_from_the_grid_and_the_vector_of_the_last(small, monkeypatch):
    """Both are the last action here, of which action i has the value i."""
    model = small(0)
    seen = watched(model, monkeypatch)
    batch = batch_of([counting(0)], [5], block=6)
    Learner(model, WorldModelTrainingConfig()).step(batch, 0, torch.Generator().manual_seed(0))
    later = seen["told"][1:]
    assert [int(state.grid[0, 0, 1, 1]) for state in later] == [5, 6, 7, 8, 9]
    assert [int(state.vector[0, 63]) for state in later] == [5, 6, 7, 8, 9]


def test_the_first_step_goes_on_from_the_grid_and_the_vector_that_are_read(small, monkeypatch):
    model, read = small(0), []
    encode = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x: read.append(encode(x)) or read[0])
    seen = watched(model, monkeypatch)
    batch = batch_of([counting(0)], [5], block=1)
    Learner(model, WorldModelTrainingConfig()).step(batch, 0, torch.Generator().manual_seed(0))
    assert torch.equal(seen["told"][0].grid, read[0].grid)
    assert torch.equal(seen["told"][0].vector, read[0].vector)


@pytest.mark.parametrize(("pictures", "each"), [(1, 2), (9, 4), (99, 6)])
def test_pictures_are_shared_by_the_clips_two_each_at_least(small, monkeypatch, pictures, each):
    model = small(0)
    seen = watched(model, monkeypatch)
    learner = Learner(model, WorldModelTrainingConfig(pictures=pictures))
    batch = batch_of([counting(0), counting(100)], [0, 20], block=6)
    learner.step(batch, 0, torch.Generator().manual_seed(0))
    first, second = seen["shown"][:each], seen["shown"][each:]
    assert len(set(first)) == len(set(second)) == each  # none twice
    assert set(first) <= set(range(1, 7)) and set(second) <= set(range(101, 107))


def test_where_the_body_is_the_whole_state_pictures_are_learnt_from_it_alone(small, monkeypatch):
    torch.manual_seed(0)
    model = WorldModel(replace(small(0).config, width=0, vector=0))
    seen, render = [], model.renderer.forward

    def renderer(grid, body):
        seen.append((grid.shape, body.tolist()))
        return render(grid, body)

    monkeypatch.setattr(model.renderer, "forward", renderer)
    monkeypatch.setattr(model.encoder, "forward", None)  # nothing is read
    batch = batch_of([counting(0), counting(100)], [5, 20 + 10], block=1)
    learner = Learner(model, WorldModelTrainingConfig())
    learner.step(batch, 0, torch.Generator().manual_seed(0))
    assert seen == [((2, 0, 1, 1), [[6.0], [111.0]])]

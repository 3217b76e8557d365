"""Rectified flow: lines, the sampler that follows them, and the loss that teaches it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.world_model.flow import blend, draw_times, flow_loss, sample, velocity
from wm_gym.world_model.transformer import VideoMemory, VideoTransformer, VideoTransformerConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


# Lines.


def test_a_line_runs_from_clean_to_noise():
    clean, noise = torch.full((3, 2, 4), 10.0), torch.full((3, 2, 4), -2.0)
    points = blend(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert [point.unique().item() for point in points] == [10, 7, -2]


@pytest.mark.parametrize("t", [0.1, 1.0])
def test_the_velocity_is_how_a_line_moves_with_its_time(t):
    clean, noise = drawn(2, 5), drawn(3, 5)[1:]
    time = torch.full((2,), t, requires_grad=True)
    points = blend(clean, noise, time)
    moved = torch.stack(
        [torch.autograd.grad(p.sum(), time, retain_graph=True)[0] for p in points.T], 1
    )
    torch.testing.assert_close(velocity(points.detach(), clean, t), moved)


# The sampler.


def test_two_steps_by_hand():
    """Half of x is taken for clean: 8 moves by 4 / 2, and 6 by (6 - 3) / 0.5 / 2."""
    seen = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.tolist(), t.tolist()))
        return x / 2

    assert sample(predict, torch.tensor([[8.0]]), 2).tolist() == [[3.0]]
    assert seen == [([[8.0]], [1.0]), ([[6.0]], [0.5])]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_what_is_known_is_found_in_any_number_of_steps(steps):
    known = drawn(3, 2, 4)
    found = sample(lambda x, t: known, drawn(4, 2, 4)[1:], steps)
    torch.testing.assert_close(found, known)


@pytest.mark.parametrize(("steps", "spread", "within"), [(1, 0.0, 1e-6), (500, 2.0, 0.02)])
def test_noise_becomes_the_data_as_steps_grow(steps, spread, within):
    """Of normal data with standard deviation 2 the best guess is known, and one step blurs all."""

    def best(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return x * (1 - t) * 4 / ((1 - t) ** 2 * 4 + t**2)

    noise = drawn(50, 1)
    torch.testing.assert_close(sample(best, noise, steps), spread * noise, rtol=within, atol=1e-6)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="1 sampling step or more, got 0"):
        sample(lambda x, t: x, torch.zeros(1, 1), 0)


def test_six_in_ten_times_are_pure_noise_and_the_rest_evenly_spread():
    t = draw_times(40_000, seeded())
    others = t[t < 1]
    assert 0.59 < (t == 1).float().mean() < 0.61 and others.min() > 0
    shares = torch.histc(others, 4, 0, 1) / len(others)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.015)


# In a model.

TINY = VideoTransformerConfig(
    image_size=16,
    patch=1,
    depth=1,
    width=32,
    heads=2,
    block_out_channels=(8, 8, 8, 8),
    layers_per_block=1,
    scaling_factor=5.0,
    memory_noise=0.0,
)


def transformer(**changes: float) -> VideoTransformer:
    """An autoencoder that is always the same, and layers that know nothing yet."""
    torch.manual_seed(0)
    return VideoTransformer(replace(TINY, **changes))


def listening(**changes: float) -> VideoTransformer:
    """One whose layers change something, for good."""
    model = transformer(**changes)
    for part in (model.told, model.leave):
        torch.nn.init.normal_(part.weight, std=0.2, generator=seeded())
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_known_frames_pass_the_network_once_and_new_ones_once_a_step(steps, monkeypatch):
    model, frames = listening(sampling_steps=steps), []
    run = model.run
    monkeypatch.setattr(model, "run", lambda x, *rest: frames.append(x.shape[1]) or run(x, *rest))
    memory = VideoMemory(drawn(2, 16), drawn(2, 4, 16))
    model.imagine(memory, drawn(2, 8, 7), drawn(2, 8, 16))
    assert frames == [5] + [8] * steps


def test_one_step_is_the_prediction_from_pure_noise_and_two_go_on_from_half_way():
    model = listening()
    known, actions, noise = drawn(2, 5, 16), drawn(2, 8, 7), drawn(2, 8, 16)
    memory, seen = VideoMemory(known[:, 0], known[:, 1:]), model.remember(known)
    assert model.sampling_steps == 2
    _, two, _ = model.imagine(memory, actions, noise)
    model.sampling_steps = 1
    _, one, _ = model.imagine(memory, actions, noise)
    torch.testing.assert_close(one, model.predict(seen, noise, torch.ones(2), actions))
    half = torch.full((2,), 0.5)
    again = model.predict(seen, blend(one, noise, half), half, actions)
    torch.testing.assert_close(two, again)
    assert not torch.allclose(one, two, atol=1e-2)


# The loss.


def episode(length: int, seed: int = 0) -> Episode:
    """Steps of noise, which an untrained autoencoder tells apart."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length + 1, 16, 16, 3), np.uint8)
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    return Episode(frames, actions, np.zeros(length, bool))


def test_a_new_model_pays_for_what_changes_in_valid_frames():
    """From step 2 of 5, 3 frames follow; a new model says that all are like frame 2."""
    model, recorded = transformer(), episode(5)
    batch = Windows([recorded], block=8).batch([2, 2])
    assert batch["valid"].sum(1).tolist() == [3, 3]
    latents = model.encode(torch.from_numpy(recorded.frames)[None])[0]
    expected = (latents[3:6] - latents[2]).square().mean().item()
    assert flow_loss(model, batch, seeded()).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


def test_windows_of_latents_are_as_good_as_windows_of_pictures():
    model, recorded = listening(), [episode(5), episode(9, seed=1)]
    latents = [model.encode(torch.from_numpy(e.frames)[None])[0] for e in recorded]
    kept = Windows(recorded, block=3, latents=latents).batch([2, 7])
    expected = flow_loss(model, Windows(recorded, block=3).batch([2, 7]), seeded())
    torch.testing.assert_close(flow_loss(model, kept, seeded()), expected, rtol=1e-4, atol=1e-6)


def test_frames_that_are_not_there_cost_and_tell_nothing():
    model, windows = listening(), Windows([episode(5)], block=8)
    batch = windows.batch([2])
    before = flow_loss(model, batch, seeded())
    batch["future"][:, 3:] = 255 - batch["future"][:, 3:]
    torch.testing.assert_close(flow_loss(model, batch, seeded()), before)
    batch["future"][:, 2] = 255 - batch["future"][:, 2]
    assert (flow_loss(model, batch, seeded()) - before).abs() > 1e-3


def test_a_batch_without_valid_frames_has_no_loss():
    batch = Windows([episode(5)]).batch([0])
    batch["valid"][:] = False
    assert flow_loss(transformer(), batch, seeded()).item() == 0


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_remembered_frames_are_noised_without_being_dimmed(noise, monkeypatch):
    model, seen = transformer(memory_noise=noise), []
    remember = model.remember
    monkeypatch.setattr(model, "remember", lambda known: seen.append(known) or remember(known))
    batch = Windows([episode(9)]).batch([4] * 200)
    flow_loss(model, batch, seeded())
    shown = torch.cat([batch["anchor"][:1, None], batch["memory"][:1]], 1)
    added = seen[0] - model.encode(shown).detach()  # (200, 5, f)
    assert added.std(0).mean().item() == pytest.approx(noise, rel=0.02)
    assert added.mean(0).abs().max() <= 0.4 * noise + 1e-5  # 4 / sqrt(200) = 0.28
    for frame in range(4):  # each with its own
        together = (added[:, frame] * added[:, frame + 1]).mean().abs()
        assert together <= 0.1 * noise**2 + 1e-9


def test_new_frames_are_shown_on_their_lines_and_told_their_actions(monkeypatch):
    model, seen = transformer(), []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *args: seen.append(args) or predict(*args))
    batch = Windows([episode(9)]).batch([1] * 300)
    flow_loss(model, batch, seeded())
    _, noisy, t, actions = seen[0]
    clean = model.encode(batch["future"][:1]).detach()
    noise = (noisy - (1 - t)[:, None, None] * clean) / t[:, None, None]
    assert torch.equal(actions, batch["actions"])
    assert 0.5 < (t == 1).float().mean() < 0.7
    for t_kind in (t == 1, t < 1):
        assert noise[t_kind].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_blocks_of_every_length_teach_and_leave_the_autoencoder(k):
    model = transformer()
    flow_loss(model, Windows([episode(9)], block=k).batch([0, 4]), seeded()).backward()
    assert model.leave.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.autoencoder.parameters())


def test_longer_blocks_and_other_memories_are_refused():
    with pytest.raises(ValueError, match="1 to 8 actions, got 9"):
        flow_loss(transformer(), Windows([episode(9)], block=9).batch([0]), seeded())
    with pytest.raises(ValueError, match="remembers 4 frames and the windows hold 3"):
        flow_loss(transformer(), Windows([episode(9)], memory=3).batch([0]), seeded())


def test_two_futures_of_one_picture_are_learnt_and_told_apart_by_their_actions():
    """Both begin alike, so their loss falls fivefold only where the actions are listened to."""
    model, one, other = transformer(memory_noise=0.05), episode(8), episode(8, seed=1)
    other.frames[0] = one.frames[0]
    batch = Windows([one, other], block=8).batch([0, 8] * 6)
    fit = [p for name, p in model.named_parameters() if not name.startswith("autoencoder")]
    optimizer = torch.optim.AdamW(fit, 5e-3)
    generator, losses = seeded(), []
    for _ in range(90):
        loss = flow_loss(model, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < losses[0] / 5

    model.eval().requires_grad_(False)
    memory = model.begin(batch["anchor"][:2, None])
    noise = drawn(2, *model.noise_shape(8))
    futures = model.encode(batch["future"][:2])
    apart = (futures[0] - futures[1]).square().mean()
    for order in ([0, 1], [1, 0]):
        _, latents, _ = model.imagine(memory, batch["actions"][order], noise)
        assert (latents - futures[order]).square().mean() < apart / 10

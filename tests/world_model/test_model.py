"""The three verbs: begin, imagine, decode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wm_gym.world_model.memory import Memory
from wm_gym.world_model.model import WorldModel, stack
from wm_gym.world_model.presets import WorldModelConfig


def pictures(n: int, t: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, t, 16, 16, 3), dtype=torch.uint8, generator=generator)


def given(model: WorldModel, n: int = 2, k: int = 8) -> tuple[Memory, Tensor, Tensor]:
    """Draw a memory, actions and noise."""
    generator = torch.Generator().manual_seed(1)
    actions = torch.rand(n, k, 7, generator=generator) * 2 - 1
    noise = torch.randn(n, *model.noise_shape(k), generator=generator)
    return model.begin(pictures(n, 5)), actions, noise


def test_every_value_of_a_pixel_survives_the_round_trip(model):
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).repeat(1, 2, 1, 1, 3)
    latents = model.encode(frames)
    assert latents.dtype == torch.float32 and latents.shape == (1, 2, 48, 4, 4)
    assert (latents.min().item(), latents.max().item()) == (-1, 1)
    assert torch.equal(model.decode(latents), frames)


def test_every_pixel_and_channel_comes_back_to_its_place(model):
    frames = pictures(2, 3)
    assert torch.equal(model.decode(model.encode(frames)), frames)


def test_pixels_are_folded_four_by_four_into_channels(model):
    frames = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)
    frames[0, 0, 5, 10, 2] = (
        255  # cell (1, 2), place (1, 2) in it, blue: channel 2 x 16 + 1 x 4 + 2
    )
    lit = (model.encode(frames)[0, 0] > -1).nonzero()
    assert lit.tolist() == [[38, 1, 2]]


def test_decoding_rounds_and_clips(model):
    # (x + 1) x 127.5: 127.5 + 0.51 rounds up, and 1.5 is over the top.
    latents = torch.full((1, 1, 48, 4, 4), 0.004)
    assert model.decode(latents).unique().tolist() == [128]
    assert model.decode(latents + 1.5).unique().tolist() == [255]
    assert model.decode(latents - 1.5).unique().tolist() == [0]


@pytest.mark.parametrize(
    ("t", "recent"),
    [(1, [0, 0, 0, 0]), (3, [0, 0, 1, 2]), (4, [0, 1, 2, 3]), (6, [2, 3, 4, 5])],
)
def test_the_memory_begins_with_the_first_picture_and_the_last_four(model, t, recent):
    frames = pictures(2, t)
    memory = model.begin(frames)
    latents = model.encode(frames)
    assert torch.equal(memory.anchor, latents[:, 0])
    assert torch.equal(memory.recent, latents[:, recent])


def test_the_stacked_memory_has_the_anchor_first(model):
    memory = model.begin(pictures(2, 6))
    frames = stack(memory)
    assert frames.shape == (2, 5, 48, 4, 4)
    assert torch.equal(frames[:, 0], memory.anchor) and torch.equal(frames[:, 1:], memory.recent)


def test_a_new_model_holds_the_last_frame_still(tiny):
    model = WorldModel(tiny)
    memory, actions, noise = given(model)
    _, latents = model.imagine(memory, actions, noise)
    assert torch.equal(latents, memory.recent[:, -1:].expand_as(latents))


def test_imagined_frames_are_bounded_float32_and_advance_the_memory(model):
    memory, actions, noise = given(model)
    after, latents = model.imagine(memory, actions, noise)
    assert latents.shape == noise.shape == (2, 8, 48, 4, 4) and latents.dtype == torch.float32
    assert latents.abs().max() <= 1 and latents.std() > 0.1
    assert torch.equal(after.recent, latents[:, 4:]) and torch.equal(after.anchor, memory.anchor)


def test_latents_are_bounded_where_the_network_is_not(model):
    memory, actions, noise = given(model)
    model.denoiser.leave[-1].bias.fill_(5.0)
    assert model.imagine(memory, actions, noise)[1].unique().tolist() == [1.0]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_frame_depends_on_no_later_action(model, steps):
    memory, actions, noise = given(model)
    changed = actions.clone()
    changed[:, 4] *= -1  # the fifth
    _, before = model.imagine(memory, actions, noise, steps)
    _, after = model.imagine(memory, changed, noise, steps)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).flatten(2).any(2).all()


def test_a_frame_depends_on_its_own_noise_alone(model):
    memory, actions, noise = given(model)
    changed = noise.clone()
    changed[:, 4] *= -1
    before, after = (model.imagine(memory, actions, e, 2)[1] for e in (noise, changed))
    differ = (before != after).flatten(2).any(2)
    assert differ.tolist() == [[j == 4 for j in range(8)]] * 2


@pytest.mark.parametrize("frame", range(5))
def test_a_frame_depends_on_every_remembered_one(model, frame):
    memory, actions, noise = given(model)
    frames = stack(memory)
    frames[:, frame] *= -1
    other = Memory(frames[:, 0], frames[:, 1:])
    before, after = (model.imagine(m, actions, noise)[1] for m in (memory, other))
    assert (before != after).flatten(2).any(2).all()


def test_rows_do_not_depend_on_each_other(model):
    memory, actions, noise = given(model, n=3)
    _, together = model.imagine(memory, actions, noise)
    alone = [
        model.imagine(memory.take(torch.tensor([i])), actions[i : i + 1], noise[i : i + 1])[1]
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("k", range(1, 8))
def test_a_shorter_block_is_the_beginning_of_a_longer_one(model, k):
    memory, actions, noise = given(model)
    _, whole = model.imagine(memory, actions, noise, 2)
    _, part = model.imagine(memory, actions[:, :k], noise[:, :k], 2)
    torch.testing.assert_close(part, whole[:, :k])


@pytest.mark.parametrize("k", [0, 9])
def test_blocks_of_another_length_are_refused(model, k):
    memory, actions, noise = given(model, k=k)
    with pytest.raises(ValueError, match=f"1 to 8 actions, got {k}"):
        model.imagine(memory, actions, noise)


def test_sampling_steps_are_network_calls(model, monkeypatch):
    memory, actions, noise = given(model)
    times, forward = [], model.denoiser.forward
    monkeypatch.setattr(
        model.denoiser, "forward", lambda x, t, seen: times.append(t) or forward(x, t, seen)
    )
    model.imagine(memory, actions, noise)
    assert [t.tolist() for t in times] == [[1.0, 1.0]]
    times.clear()
    model.imagine(memory, actions, noise, sampling_steps=4)
    assert [t[0].item() for t in times] == [1.0, 0.75, 0.5, 0.25]


def test_the_network_is_told_its_place_in_time_and_the_noise_of_its_memory(model):
    memory, actions, noise = given(model)
    seen = model.denoiser.look_ahead(stack(memory), actions, torch.full((2,), 0.02))
    other = model.denoiser.look_ahead(stack(memory), actions, torch.full((2,), 0.06))
    assert (seen.frames != other.frames).any()
    early, late = (model.denoiser(noise, torch.full((2,), t), seen) for t in (0.5, 1.0))
    assert (early != late).any()


def test_a_saved_model_imagines_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.imagine(*given(model))[1], model.imagine(*given(model))[1])


def test_a_size_that_does_not_fold_is_refused():
    with pytest.raises(ValueError, match=r"multiple of twice the patch \(8\), got 20"):
        WorldModel(WorldModelConfig(image_size=20))

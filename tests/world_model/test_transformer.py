"""The video transformer: its blocks, and the same three verbs as the recurrent model's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fakes import fake_pool
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.world_model import transformer
from wm_gym.world_model.blocks import (
    Attention,
    CausalAttention,
    Layer,
    adapt,
    along_time,
    turns,
    written_out,
)
from wm_gym.world_model.transformer import VideoMemory, VideoTransformer, VideoTransformerConfig

# 16 pixels are 2 x 2 places of 4 channels, a token each; a head has 8 channels.
TINY = VideoTransformerConfig(
    image_size=16,
    patch=1,
    depth=2,
    width=16,
    heads=2,
    block_out_channels=(8, 8, 8, 8),
    layers_per_block=1,
    scaling_factor=0.5,
)


def randomise(module: nn.Module, std: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weights in module.parameters():
        nn.init.normal_(weights, std=std, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture
def model() -> VideoTransformer:
    """New models hold the last frame still; this one has random layers instead."""
    return randomise(VideoTransformer(TINY))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, t: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, t, 16, 16, 3), dtype=torch.uint8, generator=generator)


def given(model: VideoTransformer, n: int = 2, k: int = 8) -> tuple[VideoMemory, Tensor, Tensor]:
    """Draw a memory, actions and noise."""
    actions = drawn(n, k, 7, seed=2).clamp(-1, 1)
    return model.begin(pictures(n, 6)), actions, drawn(n, *model.noise_shape(k), seed=3)


def differ(a: Tensor, b: Tensor) -> list[list[bool]]:
    """Say which of (n, k, ...) are not the same to rounding."""
    return ((a - b).abs() > 1e-5).flatten(2).any(2).tolist()


# Blocks.


def test_a_new_layer_changes_nothing():
    x, told = drawn(2, 3, 4, 8), torch.zeros(2, 3, 12, 8)
    assert torch.equal(Layer(8, 2)(x, told, turns(3, 4))[0], x)


@pytest.mark.parametrize("known", [0, 3])
def test_attention_along_time_written_out_is_the_same(known):
    q, k, v = (
        drawn(2, 2, 6, 3, 4),
        drawn(2, known + 2, 6, 3, 4, seed=2),
        drawn(2, known + 2, 6, 3, 4),
    )
    seen = torch.ones(2, known + 2, dtype=torch.bool).tril(known)
    torch.testing.assert_close(written_out(q, k, v, seen), along_time(q, k, v))


def test_adapting_by_hand():
    # [1, 3] is [-1, 1] when normalised; frame 0 is tripled and shifted by 10, frame 1 left.
    x = torch.tensor([1.0, 3.0]).expand(1, 2, 5, 2)
    shift = torch.tensor([10.0, 0.0]).view(1, 2, 1, 1)
    scale = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    expected = torch.tensor([[7.0, 13.0], [-1.0, 1.0]]).view(1, 2, 1, 2).expand(1, 2, 5, 2)
    torch.testing.assert_close(adapt(x, shift, scale), expected, rtol=1e-4, atol=1e-4)


def unit(x: Tensor) -> Tensor:
    """Divide by the root mean square."""
    return x / x.square().mean(-1, keepdim=True).sqrt()


def attended(attention: Attention, x: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """One head's queries, keys and values (l, 4) of tokens (l, 8), from the weights' rows."""
    rows = attention.query_key_value(x).view(-1, 3, 2, 4)[:, :, head]
    q, k = unit(rows[:, 0]) * attention.query_norm.weight, unit(rows[:, 1])
    return q, k * attention.key_norm.weight, rows[:, 2]


def test_attention_within_a_frame_by_its_formula():
    attention, x = randomise(Attention(8, 2)), drawn(2, 3, 5, 8)
    heads = []
    for head in range(2):
        q, k, v = attended(attention, x[1, 2], head)
        heads.append((q @ k.T / 4**0.5).softmax(-1) @ v)
    torch.testing.assert_close(attention(x)[1, 2], attention.leave(torch.cat(heads, 1)))


def test_attention_along_time_by_its_formula():
    attention, x = randomise(CausalAttention(8, 2)), drawn(2, 4, 3, 8)
    turn = turns(4, 4)
    heads = []
    for head in range(2):
        q, k, v = attended(attention, x[1, :, 2], head)
        # A pair is a complex number, which turns by 1 or by 0.01 radians a frame.
        places = torch.arange(4)[:, None] * torch.tensor([1.0, 0.01])
        q, k = (torch.complex(p[:, :2], p[:, 2:]) * torch.exp(1j * places) for p in (q, k))
        scores = (q @ k.mH).real / 4**0.5
        scores[torch.ones(4, 4).triu(1).bool()] = -torch.inf
        heads.append(scores.softmax(-1) @ v)
    expected = attention.leave(torch.cat(heads, 1))
    torch.testing.assert_close(attention(x, turn)[0][1, :, 2], expected)


def test_a_layer_carries_frames_to_later_ones_and_every_place_to_every_other():
    layer, x = randomise(Layer(8, 2)), drawn(1, 4, 3, 8).requires_grad_()
    out, _ = layer(x, drawn(1, 4, 12, 8), turns(4, 4))
    out[0, 2, 0, 0].backward()
    reached = (x.grad[0].abs().sum(-1) > 0).tolist()
    assert reached == [[True] * 3] * 3 + [[False] * 3]


@pytest.mark.parametrize("part", range(12))
def test_a_frame_listens_to_every_part_that_it_is_told(part):
    layer, x = randomise(Layer(8, 2)), drawn(1, 3, 3, 8)
    told = drawn(1, 3, 12, 8)
    before, _ = layer(x, told, turns(3, 4))
    told[0, 1, part] += 1
    after, _ = layer(x, told, turns(3, 4))
    assert differ(before, after)[0][:2] == [False, True]


def test_a_layer_adds_its_own_to_what_all_are_told():
    layer, x, told = randomise(Layer(8, 2)), drawn(1, 3, 3, 8), drawn(1, 3, 12, 8)
    own = layer.told.clone()
    before, _ = layer(x, told, turns(3, 4))
    layer.told.zero_()
    after, _ = layer(x, told + own, turns(3, 4))
    torch.testing.assert_close(before, after)


# Pictures and latents.


def test_a_latent_is_the_scaled_mean_of_the_autoencoders_channels(model):
    frames = pictures(2, 3)
    latents = model.encode(frames)
    assert latents.shape == (2, 3, 16) and latents.dtype == torch.float32
    shown = frames[1, 2].permute(2, 0, 1)[None] / 127.5 - 1
    mean, _ = model.autoencoder.quant_conv(model.autoencoder.encoder(shown)).chunk(2, 1)
    torch.testing.assert_close(latents[1, 2], 0.5 * mean.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [1, 3, 9])
def test_the_last_pictures_alone_have_the_same_latents(model, last):
    frames = pictures(2, 7)
    torch.testing.assert_close(model.encode(frames, last=last), model.encode(frames)[:, -last:])


def test_decoding_rounds_clips_and_keeps_places(model, monkeypatch):
    # (x + 1) x 127.5: 127.5 + 0.51 rounds up, and 1.5 is over the top.
    seen, image = [], torch.zeros(6, 3, 16, 16)
    image[:, 0] = torch.tensor([0.004, 1.5, -1.5, -0.6]).repeat(4)
    told = SimpleNamespace(sample=image)
    monkeypatch.setattr(model.autoencoder, "decode", lambda part: seen.append(part) or told)
    latents = drawn(2, 3, 16)
    shown = model.decode(latents)
    assert shown.shape == (2, 3, 16, 16, 3) and shown.dtype == torch.uint8
    assert shown.is_contiguous() and shown[1, 2, 5, :4, 0].tolist() == [128, 255, 0, 51]
    assert shown[..., 1:].unique().tolist() == [128]
    torch.testing.assert_close(seen[0], 2 * latents.view(6, 4, 2, 2))


def test_many_pictures_take_several_calls(model, monkeypatch):
    frames = pictures(2, 5)
    latents = model.encode(frames)
    shown = model.decode(latents)
    monkeypatch.setattr(transformer, "AT_ONCE", 3)
    torch.testing.assert_close(model.encode(frames), latents)
    assert (model.decode(latents).int() - shown.int()).abs().max() <= 1


def test_patches_by_hand():
    # 32 pixels are 4 x 4 places; a patch has 2 x 2 of them in each of 4 channels.
    model = VideoTransformer(replace(TINY, image_size=32, patch=2))
    latents = torch.arange(2 * 64.0).view(1, 2, 64)
    patches = model.patches(latents)
    assert patches.shape == (1, 2, 4, 16)
    assert patches[0, 0, 1, :5].tolist() == [2, 3, 6, 7, 18]
    assert patches[0, 1, 2, :2].tolist() == [64 + 8, 64 + 9]
    assert torch.equal(model.unpatch(patches), latents)


# Memory.


@pytest.mark.parametrize(
    ("t", "last"), [(1, [0, 0, 0, 0]), (3, [0, 0, 1, 2]), (4, [0, 1, 2, 3]), (6, [2, 3, 4, 5])]
)
def test_a_memory_has_the_first_picture_and_the_last_four(model, t, last):
    frames = pictures(2, t)
    latents, memory = model.encode(frames), model.begin(frames)
    torch.testing.assert_close(memory.anchor, latents[:, 0])
    torch.testing.assert_close(memory.recent, latents[:, last])


def numbered(rows: int) -> VideoMemory:
    """Row r has the anchor [r] and the recent frames [10 r], [10 r + 1]."""
    row = torch.arange(rows, dtype=torch.float32).view(-1, 1)
    return VideoMemory(row.clone(), torch.stack([10 * row, 10 * row + 1], 1))


def test_rows_are_taken_in_any_order_fresh_and_put_back():
    whole = numbered(3)
    taken = whole.take(torch.tensor([2, 0, 2]))
    assert taken.anchor.tolist() == [[2], [0], [2]]
    assert taken.recent.tolist() == [[[20], [21]], [[0], [1]], [[20], [21]]]
    whole.put(torch.tensor([1]), taken.take(torch.tensor([2])))
    assert whole.anchor.tolist() == [[0], [2], [2]]
    assert whole.recent.tolist() == [[[0], [1]], [[20], [21]], [[20], [21]]]
    taken.anchor.fill_(7), taken.recent.fill_(7)
    assert whole.anchor.tolist() == [[0], [2], [2]] and whole.recent.max() == 21


@pytest.mark.parametrize(("k", "kept"), [(1, 3), (3, 1), (4, 0), (8, 0)])
def test_the_next_memory_keeps_the_first_frame_and_the_last_four_and_is_fresh(model, k, kept):
    memory, actions, noise = given(model, k=k)
    before = memory.take(torch.tensor([0, 1]))
    after, latents, _ = model.imagine(memory, actions, noise)
    assert latents.shape == (2, k, 16) and latents.dtype == torch.float32
    assert torch.equal(after.anchor, memory.anchor)
    assert torch.equal(after.recent[:, :kept], memory.recent[:, 4 - kept :])
    assert torch.equal(after.recent[:, kept:], latents[:, -(4 - kept) :])
    shown = latents.clone()
    for part in after:
        part.zero_()
    assert torch.equal(memory.anchor, before.anchor) and torch.equal(memory.recent, before.recent)
    assert torch.equal(latents, shown)


# Imagining.


def test_a_new_model_holds_the_last_frame_still_whatever_is_done():
    model = VideoTransformer(TINY).eval()
    memory, actions, noise = given(model)
    with torch.no_grad():
        _, latents, _ = model.imagine(memory, actions, noise)
    torch.testing.assert_close(latents, memory.recent[:, -1:].expand(-1, 8, -1))


@pytest.mark.parametrize("k", [1, 8])
def test_known_frames_kept_as_keys_and_values_are_as_good_as_passed_again(model, k):
    """All frames in one pass, no past: the same as the known once and the new behind them."""
    _, actions, noise = given(model, k=k)
    known, level = drawn(2, 5, 16, seed=4), torch.tensor([0.05, 0.05])
    t = torch.tensor([0.7, 0.2])
    told_known = model.tell(level, model.no_action)
    told_new = model.tell(t, model.embed(actions))
    whole, _ = model.run(torch.cat([known, noise], 1), torch.cat([told_known, told_new], 1))

    remembered = model.remember(known)
    behind, pasts = model.run(noise, told_new, remembered.pasts)
    torch.testing.assert_close(behind, whole[:, 5:], rtol=1e-5, atol=1e-5)
    assert behind.std() > 0.1 and [p.key.shape[1] for p in pasts] == [5 + k] * 2

    shift, scale = model.told_last(told_new)[:, :, None].chunk(2, -1)
    change = model.unpatch(model.leave(adapt(whole[:, 5:], shift, scale)))
    predicted = model.predict(remembered, noise, t, actions)
    torch.testing.assert_close(predicted, known[:, -1:] + change, rtol=1e-5, atol=1e-5)


def test_an_action_is_told_with_the_sum_of_those_up_to_it(model):
    heard = []
    model.action.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    actions = torch.zeros(1, 3, 7)
    actions[0, :, 2] = torch.tensor([1.0, -0.5, 0.25])
    model.embed(actions)
    told = heard[0][0]
    assert told.shape == (3, 14) and torch.equal(told[:, :7], actions[0])
    far = torch.tensor([1.0, 0.5, 0.75]) / 8**0.5
    torch.testing.assert_close(told[:, 9], far)
    assert told[:, 7:].count_nonzero() == 3


def test_one_network_alone_is_never_uncertain(model):
    assert model.imagine(*given(model, k=3))[2].tolist() == [[0.0] * 3] * 2


def test_frames_and_rows_depend_on_their_own_action_and_noise_and_on_no_later_one(model):
    memory, actions, noise = given(model)
    _, before, _ = model.imagine(memory, actions, noise)
    changed = actions.clone(), noise.clone()
    changed[0][1, 4] *= -1  # the fifth
    changed[1][1, 4] *= -1
    for case in ((changed[0], noise), (actions, changed[1])):
        _, after, _ = model.imagine(memory, *case)
        assert differ(before, after) == [[False] * 8, [False] * 4 + [True] * 4]
    for part in memory:
        part[1] *= -1
    assert differ(before, model.imagine(memory, actions, noise)[1]) == [[False] * 8, [True] * 8]


@pytest.mark.parametrize("frame", range(5))
def test_every_remembered_frame_matters_and_has_its_own_place(model, frame):
    memory, actions, noise = given(model)
    _, before, _ = model.imagine(memory, actions, noise)
    if frame < 4:
        memory.recent[:, frame] *= -1
    else:
        memory.anchor.neg_()
    assert differ(before, model.imagine(memory, actions, noise)[1]) == [[True] * 8] * 2
    swapped = VideoMemory(memory.recent[:, 0], memory.recent[:, [1, 0, 2, 3]])
    assert differ(before, model.imagine(swapped, actions, noise)[1]) == [[True] * 8] * 2


def test_places_are_told_apart(model):
    """Turned pictures do not just turn what is imagined."""

    def turn(latents: Tensor) -> Tensor:
        return latents.unflatten(-1, (4, 4)).flip(-1).flatten(-2)

    memory, actions, noise = given(model)
    _, before, _ = model.imagine(memory, actions, noise)
    _, after, _ = model.imagine(VideoMemory(*map(turn, memory)), actions, turn(noise))
    assert differ(turn(before), after) == [[True] * 8] * 2


def test_the_model_is_told_how_noisy_its_memory_is(model):
    other = randomise(VideoTransformer(replace(TINY, memory_noise=0.5)))
    before, after = (each.imagine(*given(each))[1] for each in (model, other))
    assert differ(before, after) == [[True] * 8] * 2


@pytest.mark.parametrize("k", range(1, 8))
def test_a_shorter_block_is_the_beginning_of_a_longer_one(model, k):
    memory, actions, noise = given(model)
    _, whole, _ = model.imagine(memory, actions, noise)
    _, part, _ = model.imagine(memory, actions[:, :k], noise[:, :k])
    torch.testing.assert_close(part, whole[:, :k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0, 9])
def test_blocks_of_another_length_are_refused(model, k):
    with pytest.raises(ValueError, match=f"1 to 8 actions, got {k}"):
        model.imagine(*given(model, k=k))


def test_memories_and_latents_are_float32_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        memory, actions, noise = given(model)
        after, latents, apart = model.imagine(memory, actions, noise)
        shown = model.decode(latents)
    assert {part.dtype for part in (*memory, *after, latents, apart)} == {torch.float32}
    exact = model.imagine(*given(model))[1]
    assert 0 < (latents - exact).abs().mean() < 0.1 * exact.std()
    assert shown.dtype == torch.uint8


@pytest.mark.parametrize("t", [3, 11])
def test_what_was_recorded_is_retold_in_blocks_from_what_really_came_before(model, t):
    frames, actions, noise = pictures(2, 1 + t), drawn(2, t, 7, seed=2), drawn(2, t, 16, seed=3)
    told = model.retell(model.encode(frames), actions, noise)
    assert told.shape == (2, t, 16)
    for s in range(0, t, 8):
        memory, block = model.begin(frames[:, : 1 + s]), slice(s, s + 8)
        _, expected, _ = model.imagine(memory, actions[:, block], noise[:, block])
        torch.testing.assert_close(told[:, block], expected, rtol=1e-4, atol=1e-5)


# Building and keeping.


def test_a_saved_model_imagines_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VideoTransformer.from_pretrained(tmp_path).requires_grad_(False)
    assert loaded.config == model.config
    latents = model.imagine(*given(model))[1]
    assert torch.equal(loaded.imagine(*given(model))[1], latents)
    assert torch.equal(loaded.decode(latents), model.decode(latents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 24, "patch": 2}, "image_size must be a multiple of 16, .* got 24"),
        ({"width": 18, "heads": 2}, "multiple of 2 x heads = 4, got 18"),
        ({"memory": 0}, "memory must be an integer at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VideoTransformer(replace(TINY, **change))


def test_it_says_that_it_is_never_uncertain(model):
    assert model.certain and not model.imagine(*given(model))[2].any()


class Brightness(nn.Module):
    """The probability of success is how large the latents of the window's last frame are."""

    config = SimpleNamespace(window=8, latent_size=16)
    threshold, hold_k, hold_n = 1.1, 1, 1

    def embed(self, latents: Tensor) -> Tensor:
        return latents.mean(2, keepdim=True)

    def probability(self, features: Tensor) -> Tensor:
        return features[:, 7:, 0].sigmoid()


@pytest.mark.parametrize("compile", [False, True])
def test_what_is_heavy_is_compiled_where_that_is_wanted(monkeypatch, model, compile):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    models = {"world_model": model, "success": Brightness()}
    ImaginedVectorEnv("Lift", 1, starts=fake_pool(image_size=16), compile=compile, **models)
    assert compiled == ([*model.layers, model.autoencoder.decoder] if compile else [])


def test_a_compiled_world_is_the_same(monkeypatch):
    """Without the compiler's back end: what is traced, in whole graphs."""
    compiled = partial(nn.Module.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", lambda part: compiled(part))
    shown = []
    for compile in (False, True):
        models = {"world_model": randomise(VideoTransformer(TINY)), "success": Brightness()}
        starts = fake_pool(image_size=16)
        env = ImaginedVectorEnv("Lift", 2, chunk=3, starts=starts, compile=compile, **models)
        env.action_space.seed(0)
        env.reset(seed=0)
        shown.append(env.step(env.action_space.sample())[0]["image"])
    assert np.array_equal(*shown) and shown[0].std() > 10


@pytest.mark.parametrize("chunk", [3, 8])
def test_a_world_is_played_saved_and_gone_on_with(model, chunk):
    models = {"world_model": model, "success": Brightness()}
    env = ImaginedVectorEnv("Lift", 2, chunk=chunk, starts=fake_pool(image_size=16), **models)
    env.action_space.seed(0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    state, actions = env.get_state(), env.action_space.sample()
    first, *_, told = env.step(actions)
    env.step(env.action_space.sample())
    env.set_state(state)
    again, *_, told_again = env.step(actions)
    assert np.array_equal(first["image"], again["image"])
    assert told["elapsed_steps"].tolist() == told_again["elapsed_steps"].tolist() == [2 * chunk] * 2
    env.set_state(state)
    other, *_ = env.step(-actions)
    assert not np.array_equal(first["image"], other["image"])


def test_without_an_anchor_nothing_comes_of_the_first_picture():
    model = randomise(VideoTransformer(replace(TINY, anchor=False)))
    memory, actions, noise = given(model)
    before = model.imagine(memory, actions, noise)[1]
    memory.anchor.neg_()
    assert torch.equal(before, model.imagine(memory, actions, noise)[1])
    memory.recent[:, 0].neg_()
    assert differ(before, model.imagine(memory, actions, noise)[1]) == [[True] * 8] * 2

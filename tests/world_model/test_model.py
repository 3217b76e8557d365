"""The three verbs: begin, imagine, decode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import alone
from wm_gym.world_model import model as module
from wm_gym.world_model.dynamics import State
from wm_gym.world_model.memory import Memory
from wm_gym.world_model.model import WorldModel, flatten, pixels
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


def drawn(model: WorldModel, latents: Tensor) -> Tensor:
    """Pictures (n, k, 3, 16, 16) before they are rounded."""
    state = model.unflatten(latents.flatten(0, 1))
    return model.renderer(state.grid, state.body).unflatten(0, latents.shape[:2])


def differ(a: Tensor, b: Tensor) -> list[list[bool]]:
    """Say which of (n, k, ...) are not the same bits."""
    return (a != b).flatten(2).any(2).tolist()


# Pictures.


def test_pixels_by_hand():
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 1, 2, 4, 3)
    shown = pixels(frames)
    assert shown.shape == (1, 1, 3, 2, 4) and shown.dtype == torch.float32
    for channel, value in enumerate((-1.0, 1.0, -0.6)):
        torch.testing.assert_close(shown[0, 0, channel], torch.full((2, 4), value))


def test_every_value_of_a_pixel_survives_the_round_trip(model, monkeypatch):
    """Decoding undoes `pixels`: every value, at its place, in its channel and in its frame."""
    frames = pictures(2, 3)
    frames[0, 1] = torch.arange(256, dtype=torch.uint8).view(16, 16, 1)
    monkeypatch.setattr(model.renderer, "forward", lambda *_: pixels(frames).flatten(0, 1))
    shown = model.decode(torch.zeros(2, 3, model.config.latent_size))
    assert shown.dtype == torch.uint8 and shown.is_contiguous()
    assert torch.equal(shown, frames)


def test_a_cpu_draws_many_pictures_a_few_at_a_time(model, monkeypatch):
    counts, draw = [], model.renderer.forward
    monkeypatch.setattr(module, "TILE", 4)
    monkeypatch.setattr(
        model.renderer, "forward", lambda *state: counts.append(len(state[0])) or draw(*state)
    )
    _, latents, _ = model.imagine(*given(model, n=3, k=3))  # 9 pictures
    shown = model.decode(latents)
    assert counts == [4, 4, 1]
    alone = [model.decode(latents[i : i + 1, j : j + 1])[0, 0] for i in range(3) for j in range(3)]
    far = (shown.flatten(0, 1).int() - torch.stack(alone).int()).abs()
    assert far.max() <= 1  # kernels may round by batch size


@pytest.mark.parametrize(("value", "level"), [(0.004, 128), (1.5, 255), (-1.5, 0)])
def test_decoding_rounds_and_clips(model, value, level):
    # (x + 1) x 127.5: 127.5 + 0.51 rounds up, and 1.5 is over the top.
    model.renderer.leave.weight.zero_(), model.renderer.leave.bias.fill_(value)
    model.renderer.mean.zero_()
    memory, actions, noise = given(model)
    latents = model.imagine(memory, actions, noise)[1]
    assert model.decode(latents).unique().tolist() == [level]


# Latents.


def test_a_latent_is_its_grid_then_its_vector_then_its_body(model):
    # The grid has 8 channels of 2 x 2 cells, the vector 16 numbers, the body 3.
    latents = torch.arange(2 * 51.0).view(2, 51)
    state = model.unflatten(latents)
    assert [part.shape for part in state] == [(2, 8, 2, 2), (2, 16), (2, 3)]
    assert state.grid[1, 3].tolist() == [[63, 64], [65, 66]]
    assert state.vector[1].tolist() == list(range(83, 99))
    assert state.body[1].tolist() == [99, 100, 101]
    assert torch.equal(flatten(state), latents)


def test_latents_are_flattened_in_float32():
    state = State(torch.ones(1, 8, 2, 2).bfloat16(), torch.zeros(1, 16), torch.zeros(1, 3))
    assert flatten(state).dtype == torch.float32


def test_the_latent_of_a_picture_is_read_from_it_the_three_before_and_the_first(model):
    frames, seen = pictures(2, 6), []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latents = model.encode(frames)
    assert latents.shape == (2, 6, 51) and latents.dtype == torch.float32
    # The first stands for those before it.
    read = [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 2, 3, 4, 5],
    ]
    expected = frames[:, read].permute(0, 1, 2, 5, 3, 4) / 127.5 - 1
    assert torch.equal(seen[0], expected.flatten(0, 1))
    state = model.encoder(expected[1, 4:5])
    torch.testing.assert_close(latents[1, 4:5], flatten(state))


@pytest.mark.parametrize("t", [1, 3, 4, 6])
def test_a_memory_begins_with_the_latent_of_the_last_picture(model, t):
    frames = pictures(2, t)
    torch.testing.assert_close(model.begin(frames).state, model.encode(frames)[:, -1])


@pytest.mark.parametrize("frame", [0, 2, 3, 4, 5])
def test_every_remembered_picture_matters_to_every_frame(model, frame):
    _, actions, noise = given(model)
    frames = pictures(2, 6)
    before = model.imagine(model.begin(frames), actions, noise)[1]
    frames[:, frame] = 255 - frames[:, frame]
    after = model.imagine(model.begin(frames), actions, noise)[1]
    assert differ(drawn(model, before), drawn(model, after)) == [[True] * 8] * 2


def test_pictures_between_the_first_and_the_last_four_are_forgotten(model):
    frames = pictures(2, 7)
    other = frames.clone()
    other[:, 1:3] = 255 - other[:, 1:3]
    assert torch.equal(model.begin(frames).state, model.begin(other).state)


def test_a_picture_does_not_show_the_vector(model):
    latents = model.encode(pictures(2, 3))
    other = latents.clone()
    other[:, :, 32:48] *= -1
    assert torch.equal(model.decode(latents), model.decode(other))


# Imagining.


def test_a_new_model_shows_its_mean_picture_whatever_is_done(tiny):
    model = WorldModel(tiny)
    latents = model.imagine(*given(model))[1]
    assert (drawn(model, latents) == 0).all()
    # Value [c, y, x] lies in channel 4 c + 2 (y % 2) + x % 2 of the half-sized map.
    picture = torch.linspace(-1, 1, 3 * 16 * 16).view(3, 16, 16)
    for y in range(2):
        for x in range(2):
            model.renderer.mean.data[2 * y + x :: 4] = picture[:, y::2, x::2]
    expected = ((picture + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8)
    assert torch.equal(model.decode(latents), expected.expand(2, 8, 16, 16, 3))


def test_imagined_latents_are_those_of_the_renderer(model):
    latents = model.imagine(*given(model))[1]
    assert latents.shape == (2, 8, 51) and latents.dtype == torch.float32
    shown = model.decode(latents)
    assert shown.shape == (2, 8, 16, 16, 3) and shown.float().std() > 10
    expected = (drawn(model, latents) + 1) * 127.5
    assert (shown.movedim(-1, 2) - expected.clamp(0, 255)).abs().max() <= 0.5 + 1e-3


def test_the_next_memory_is_the_last_latent_and_fresh(model):
    memory, actions, noise = given(model)
    before = memory.state.clone()
    after, latents, _ = model.imagine(memory, actions, noise)
    assert torch.equal(after.state, latents[:, -1]) and torch.equal(memory.state, before)
    shown = latents.clone()
    after.state.zero_()
    assert torch.equal(memory.state, before) and torch.equal(latents, shown)


def test_a_frame_depends_on_its_own_action_and_on_no_later_one(model):
    memory, actions, noise = given(model)
    changed = actions.clone()
    changed[:, 4] *= -1  # the fifth
    before, after = (model.imagine(memory, a, noise)[1] for a in (actions, changed))
    assert differ(before, after) == [[False] * 4 + [True] * 4] * 2
    assert differ(drawn(model, before), drawn(model, after)) == [[False] * 4 + [True] * 4] * 2


def test_noise_matters_from_its_own_frame_on(model):
    memory, actions, noise = given(model)
    changed = noise.clone()
    changed[:, 4] *= -1
    before, after = (model.imagine(memory, actions, e)[1] for e in (noise, changed))
    assert differ(before, after) == [[False] * 4 + [True] * 4] * 2
    assert differ(drawn(model, before), drawn(model, after)) == [[False] * 4 + [True] * 4] * 2


def test_noise_is_added_to_the_body_before_every_step(model, monkeypatch):
    """It has a standard deviation of 0.0005; nothing else is touched."""
    memory, actions, noise = given(model, k=3)
    told = []

    def still(state: State, *_: Tensor) -> tuple[State, Tensor]:
        told.append(state)
        return state, torch.zeros(2)

    monkeypatch.setattr(model.transition, "forward", still)
    latents = model.imagine(memory, actions, noise)[1]
    rest, body = memory.state.split([48, 3], dim=1)
    expected = body[:, None] + 0.0005 * noise.cumsum(1)
    torch.testing.assert_close(torch.stack([state.body for state in told], 1), expected)
    torch.testing.assert_close(latents[:, :, 48:], expected)
    assert torch.equal(latents[:, :, :48], rest[:, None].expand(-1, 3, -1))


def test_what_is_measured_is_told_in_its_own_units_after_every_step(model):
    memory, actions, _ = given(model, k=5)
    model.body_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    model.body_std.copy_(torch.tensor([0.5, 4.0, 1.0]))
    measured = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    latents = model.follow(memory, actions, measured)
    assert latents.shape == (2, 5, 51) and latents.dtype == torch.float32
    expected = (measured - torch.tensor([1.0, -2.0, 0.5])) / torch.tensor([0.5, 4.0, 1.0])
    torch.testing.assert_close(latents[:, :, 48:], expected)
    other = measured.clone()
    other[:, 2] += 1
    changed = differ(latents, model.follow(memory, actions, other))
    assert changed == [[False] * 2 + [True] * 3] * 2


def test_what_a_robot_measures_stands_where_pictures_were_read(model):
    """Its first 2 of 3 numbers are told, one of them in one row only."""
    before = model.begin(pictures(2, 5)).state
    model.body_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    model.body_std.copy_(torch.tensor([0.5, 4.0, 1.0]))
    robot = torch.tensor([[2.0, 6.0], [0.0, torch.nan]])
    told = model.begin(pictures(2, 5), robot).state
    expected = before.clone()
    expected[:, 48] = torch.tensor([2.0, -2.0])
    expected[0, 49] = 2.0
    assert torch.equal(told, expected)


def test_a_robot_whose_measurements_do_not_come_first_is_refused(tiny):
    with pytest.raises(ValueError, match=r"must come first in the body, got \('fingers',\)"):
        WorldModel(replace(tiny, robot=("fingers",)))


def test_told_what_it_imagines_anyway_it_imagines_the_same(model):
    memory, actions, noise = given(model, k=5)
    _, imagined, _ = model.imagine(memory, actions, torch.zeros_like(noise))
    told = imagined[:, :, 48:] * model.body_std + model.body_mean
    torch.testing.assert_close(model.follow(memory, actions, told), imagined)


def test_rows_do_not_depend_on_each_other(model):
    memory, actions, noise = given(model, n=3)
    _, together, _ = model.imagine(memory, actions, noise)
    alone = [
        model.imagine(memory.take(torch.tensor([i])), actions[i : i + 1], noise[i : i + 1])[1]
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    begun = [model.begin(pictures(3, 5)[i : i + 1]).state for i in range(3)]
    torch.testing.assert_close(memory.state, torch.cat(begun))


@pytest.mark.parametrize("k", range(1, 8))
def test_a_shorter_block_is_the_beginning_of_a_longer_one(model, k):
    memory, actions, noise = given(model)
    _, *whole = model.imagine(memory, actions, noise)
    _, *part = model.imagine(memory, actions[:, :k], noise[:, :k])
    for few, all_of_them in zip(part, whole, strict=True):
        torch.testing.assert_close(few, all_of_them[:, :k])


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_two_blocks_are_one_longer_block(model, cut):
    memory, actions, noise = given(model)
    _, *whole = model.imagine(memory, actions, noise)
    between, *first = model.imagine(memory, actions[:, :cut], noise[:, :cut])
    _, *second = model.imagine(between, actions[:, cut:], noise[:, cut:])
    for expected, *parts in zip(whole, first, second, strict=True):
        torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_memories_and_latents_are_float32_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        memory, actions, noise = given(model)
        after, *told = model.imagine(memory, actions, noise)
        shown = model.decode(told[0])
    assert {part.dtype for part in (memory.state, after.state, *told)} == {torch.float32}
    exact = model.decode(model.imagine(*given(model))[1])
    assert 0 < (shown.float() - exact.float()).abs().mean() < 4


@pytest.mark.parametrize("k", [0, 9])
def test_blocks_of_another_length_are_refused(model, k):
    memory, actions, noise = given(model, k=k)
    with pytest.raises(ValueError, match=f"1 to 8 actions, got {k}"):
        model.imagine(memory, actions, noise)


# Uncertainty.


def apart_by_hand(config: WorldModelConfig) -> WorldModel:
    """Two members and three measurements, the first in units of 10.

    One member moves nothing. The other moves the first two by what they are, and the last by the
    first action value.
    """
    model = WorldModel(replace(config, members=2, noise=0.5)).requires_grad_(False)
    model.transition.motion.change.copy_(torch.tensor([10.0, 1, 1]))

    def each(body: Tensor, action: Tensor) -> Tensor:
        moves = torch.cat([body[..., :2], action[..., :1]], dim=-1)
        return moves * torch.tensor([0.0, 1])[:, None, None]

    model.transition.motion.each = each
    return model


def given_by_hand(model: WorldModel) -> tuple[Memory, Tensor, Tensor]:
    """Two steps of two rows, of which only the first has noise."""
    memory, actions, noise = given(model, k=2)
    memory.state[:, -3:] = torch.tensor([[2.0, 1, 0], [0, 0, 0]])
    noise[:] = torch.tensor([[[4.0, 2, 0], [0, -3, 0]], [[0, 0, 0], [0, 0, 0]]])
    actions[:, :, 0] = torch.tensor([[6.0, 0], [0, -6]])
    return memory, actions, noise


@pytest.mark.parametrize("grid", [{}, {"width": 0, "vector": 0}])
def test_how_far_apart_the_members_are_about_each_step_by_hand(tiny, grid):
    model = apart_by_hand(replace(tiny, **grid))
    memory, actions, noise = given_by_hand(model)
    _, latents, apart = model.imagine(memory, actions, noise)
    # Noise comes before the move: first (4, 2, 0), which is moved by half of (4, 2, 6); then
    # (24, 1.5, 3), by half of (24, 1.5, 0). So far is each of the two from their mean. In the other
    # row nothing moves but the last measurement in the second step, by half of -6.
    expected = [[(14 / 3) ** 0.5, ((12**2 + 0.75**2) / 3) ** 0.5], [0, 3**0.5]]
    torch.testing.assert_close(apart, torch.tensor(expected))
    bodies = [[[24.0, 3, 3], [144, 2.25, 3]], [[0, 0, 0], [0, 0, -3]]]
    torch.testing.assert_close(latents[:, :, -3:], torch.tensor(bodies))


def test_one_member_alone_is_never_uncertain(tiny):
    model = WorldModel(replace(tiny, members=1))
    for weights in model.transition.motion.parameters():
        torch.nn.init.normal_(weights, std=0.05)
    assert model.imagine(*given(model))[2].tolist() == [[0.0] * 8] * 2
    assert model.certain and not WorldModel(replace(tiny, members=2)).certain


@pytest.mark.parametrize("grid", [{}, {"width": 0, "vector": 0}])
def test_members_that_imagine_alone_by_hand(tiny, grid):
    """One member moves nothing, the other as `apart_by_hand` says; change is (10, 1, 1)."""
    model = apart_by_hand(replace(tiny, **grid))
    memory, actions, noise = given_by_hand(model)
    alone = Memory(torch.stack([memory.state] * 2, dim=1))
    after, latents = model.imagine_alone(alone, actions, noise)
    # Half of the noise comes first: (4, 2, 0), which the other member moves by (40, 2, 6).
    still = [[[4.0, 2, 0], [4, 0.5, 0]], [[0, 0, 0], [0, 0, 0]]]
    moved = [[[44.0, 4, 6], [484, 5, 6]], [[0, 0, 0], [0, 0, -6]]]
    expected = torch.stack([torch.tensor(still), torch.tensor(moved)], dim=1)
    torch.testing.assert_close(latents[..., -3:], expected)
    assert torch.equal(after.state, latents[:, :, -1]) and latents.shape[:3] == (2, 2, 2)


@pytest.mark.parametrize("grid", [{}, {"width": 0, "vector": 0}])
def test_a_member_alone_imagines_what_it_would_if_there_were_no_other(tiny, grid):
    model = WorldModel(replace(tiny, members=3, **grid)).requires_grad_(False)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    memory, actions, noise = given(model)
    futures = Memory(torch.stack([memory.state] * 3, dim=1))
    for _ in range(2):
        futures, latents = model.imagine_alone(futures, actions, noise)
    for member in range(3):
        lone = alone(model, member)
        after = memory
        for _ in range(2):
            after, wanted, _ = lone.imagine(after, actions, noise)
        torch.testing.assert_close(latents[:, member], wanted, rtol=1e-4, atol=1e-5)
        assert (latents[:, member] - latents[:, member - 1]).abs().max() > 1e-2


def test_members_that_imagine_alone_take_blocks_of_a_length_that_fits(model):
    memory, actions, noise = given(model, k=9)
    with pytest.raises(ValueError, match="1 to 8 actions, got 9"):
        model.imagine_alone(Memory(memory.state[:, None]), actions, noise)


def test_noise_is_no_uncertainty_where_members_agree(model):
    for weights in model.transition.motion.parameters():
        weights[:] = weights[:1].clone()
    memory, actions, noise = given(model)
    _, latents, apart = model.imagine(memory, actions, 100 * noise)
    assert apart.max() < 1e-6 < latents[:, :, -3:].diff(dim=1).abs().min()


# Building and keeping.


def test_a_saved_model_imagines_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    latents = model.imagine(*given(model))[1]
    assert torch.equal(loaded.imagine(*given(model))[1], latents)
    assert torch.equal(loaded.decode(latents), model.decode(latents))


def test_the_scale_of_the_body_is_saved_with_the_weights(model, tmp_path):
    measured = {
        "body_mean": [1.0, 2, 3],
        "body_std": [4.0, 5, 6],
        "transition.motion.mean": [1.5, 2, 3],
        "transition.motion.std": [4.5, 5, 6],
        "transition.motion.change": [7.0, 8, 9],
    }
    for name, values in measured.items():
        model.get_buffer(name).copy_(torch.tensor(values))
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert {name: loaded.get_buffer(name).tolist() for name in measured} == measured


def test_a_size_that_has_no_whole_cells_is_refused():
    with pytest.raises(ValueError, match="multiple of 8, got 20"):
        WorldModel(WorldModelConfig(image_size=20))


@pytest.mark.parametrize("part", ["width", "vector"])
def test_a_grid_without_a_vector_and_the_reverse_are_refused(tiny, part):
    with pytest.raises(ValueError, match="set both, or both to 0"):
        WorldModel(replace(tiny, **{part: 0}))


@pytest.mark.parametrize("last", [1, 3, 9])
def test_the_last_pictures_alone_have_the_same_latents(model, last):
    frames = pictures(2, 7)
    torch.testing.assert_close(model.encode(frames, last=last), model.encode(frames)[:, -last:])


# A world that is its body alone.


@pytest.fixture
def bodily(tiny) -> WorldModel:
    """Random layers, as `model` has; a body of three numbers and nothing else."""
    model = WorldModel(replace(tiny, width=0, vector=0))
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


def test_the_latent_of_a_picture_is_the_body_that_is_read_from_it(bodily):
    frames = pictures(2, 1)
    shown = pixels(frames).expand(-1, 5, -1, -1, -1)  # the first stands for those before it
    assert bodily.config.latent_size == 3
    torch.testing.assert_close(bodily.encode(frames)[:, 0], bodily.encoder.body(shown))


def test_a_body_moves_by_itself(bodily):
    memory, actions, noise = given(bodily, k=2)
    after, latents, _ = bodily.imagine(memory, actions, 0 * noise)
    motion, body = bodily.transition.motion, memory.state
    for step in range(2):
        body = body + motion.change * motion(body, actions[:, step])[0]
        torch.testing.assert_close(latents[:, step], body)
    assert torch.equal(after.state, latents[:, 1])


def test_told_what_is_measured_it_is_that(bodily):
    memory, actions, _ = given(bodily, k=5)
    measured = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(bodily.follow(memory, actions, measured), measured)


def test_a_picture_shows_its_body_and_no_other_row(bodily):
    latents = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(2))
    before = drawn(bodily, latents)
    latents[1] *= -1
    after = drawn(bodily, latents)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_saved_body_imagines_the_same(bodily, tmp_path):
    bodily.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    latents = bodily.imagine(*given(bodily))[1]
    assert torch.equal(loaded.imagine(*given(bodily))[1], latents)
    assert torch.equal(loaded.decode(latents), bodily.decode(latents))

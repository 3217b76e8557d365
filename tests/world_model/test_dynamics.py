"""Parts of the dynamics whose effect can be said in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wm_gym.world_model.dynamics import (
    POINTS,
    SUMMARY,
    Attention,
    Encoder,
    Glance,
    Renderer,
    Residual,
    State,
    Transition,
)
from wm_gym.world_model.motion import Motion


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weights in module.parameters():
        nn.init.normal_(weights, std=0.3, generator=generator)
    return module.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def states(n: int = 2) -> State:
    return State(drawn(n, 8, 2, 2), *drawn(n, 10).split([6, 4], dim=1))


def transition() -> Transition:
    motion = Motion(4, 7, hand=(0, 1), fingers=(2,))
    return Transition(motion, 7, 8, 6, 4, 16, side=2)


def renderer() -> Renderer:
    return Renderer(8, (8, 8, 8), 4, 16, side=2)


def differ(one: State, other: State) -> set[str]:
    """Name the parts that are not the same."""
    pairs = zip(State._fields, one, other, strict=True)
    return {name for name, a, b in pairs if not torch.allclose(a, b)}


def row(state: State, i: int) -> State:
    return State(*(part[i] for part in state))


# Blocks.


@pytest.mark.parametrize(
    "block", [Residual(8), lambda x: Residual(8, 4)(x, torch.ones(2, 4)), Attention(8)]
)
def test_a_new_block_changes_nothing(block):
    x = drawn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_a_residual_block_listens_to_its_condition_row_by_row():
    block, x = randomise(Residual(8, 4)), drawn(2, 8, 4, 4)
    condition = torch.ones(2, 4)
    before = block(x, condition)
    condition[1] = -1
    after = block(x, condition)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_a_condition_scales_and_shifts_between_the_convolutions():
    """With both convolutions the identity, of weight 1 in the middle."""
    block, x = Residual(8, 1).requires_grad_(False), drawn(1, 8, 4, 4)
    for conv in (block.first, block.second):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    block.condition.weight.zero_()
    block.condition.bias[:8], block.condition.bias[8:] = 2.0, -1.0
    silu, norm = nn.functional.silu, nn.functional.group_norm
    expected = x + silu(norm(silu(norm(x, 8)), 8) * 3 - 1)
    torch.testing.assert_close(block(x, torch.zeros(1, 1)), expected)


def test_attention_carries_every_place_to_every_other():
    block, x = randomise(Attention(8)), drawn(1, 8, 4, 4).requires_grad_()
    block(x)[0, 0, 0, 0].backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_attention_does_not_care_for_the_order_of_places():
    block, x = randomise(Attention(8)), drawn(2, 8, 4, 4)
    turned = block(x.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, block(x))


def test_attention_is_that_of_torch():
    block, x = randomise(Attention(8)), drawn(2, 8, 2, 3)
    other = nn.MultiheadAttention(8, 4, batch_first=True).requires_grad_(False)
    other.in_proj_weight.copy_(block.query_key_value.weight.flatten(1))
    other.in_proj_bias.copy_(block.query_key_value.bias)
    other.out_proj.weight.copy_(block.leave.weight.flatten(1))
    other.out_proj.bias.copy_(block.leave.bias)
    places = block.norm(x).flatten(2).transpose(1, 2)  # (n, places, c)
    mixed = other(places, places, places)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(block(x), x + mixed)


# The glance.


def test_a_glance_has_averages_first_and_then_places():
    glance, grid = Glance(8, 4), drawn(2, 8, 4, 4)
    nn.init.zeros_(glance.summary.weight), nn.init.zeros_(glance.maps.weight)
    glance.summary.weight.data[0, 3] = 2.0
    nn.init.zeros_(glance.summary.bias)
    told = glance(grid)
    assert told.shape == (2, glance.size) == (2, SUMMARY + 2 * POINTS)
    torch.testing.assert_close(told[:, 0], 2 * grid[:, 3].mean((1, 2)))
    # Flat maps point at the centre.
    torch.testing.assert_close(told[:, 1:], torch.zeros(2, glance.size - 1))


def test_a_glance_tells_where_a_map_is_bright():
    """Row 1 of 4 is y = -1/3, and column 3 is x = 1."""
    glance, grid = Glance(8, 4), torch.zeros(1, 8, 4, 4)
    nn.init.zeros_(glance.maps.weight)
    glance.maps.weight.data[[0, 2], [5, 6]] = 1.0
    grid[0, 5, 1, 3] = 100.0
    grid[0, 6, 0, 0] = grid[0, 6, 0, 3] = 100.0  # in the middle of the top, between the two
    places = glance(grid)[0, SUMMARY:].view(POINTS, 2)
    torch.testing.assert_close(places[0], torch.tensor([-1 / 3, 1.0]))
    torch.testing.assert_close(places[1], torch.zeros(2))
    torch.testing.assert_close(places[2], torch.tensor([-1.0, 0.0]))


# The encoder.


def test_the_encoder_makes_a_grid_of_cells_of_eight_pixels_a_vector_and_a_body():
    encoder = randomise(Encoder(5, 8, 16, 6, 4, side=3))
    state = encoder(drawn(2, 5, 3, 24, 24))
    assert [part.shape for part in state] == [(2, 16, 3, 3), (2, 6), (2, 4)]


def test_the_encoder_tells_its_pictures_apart_by_their_order():
    encoder, pictures = randomise(Encoder(2, 8, 8, 6, 4, side=2)), drawn(1, 2, 3, 16, 16)
    assert differ(encoder(pictures), encoder(pictures.flip(1))) == {"grid", "vector", "body"}


@pytest.mark.parametrize(("y", "x"), [(0, 0), (7, 15), (15, 8)])
def test_the_encoder_sees_every_corner_of_a_picture(y, x):
    encoder, pictures = randomise(Encoder(2, 8, 8, 6, 4, side=2)), drawn(1, 2, 3, 16, 16)
    before = encoder(pictures)
    pictures[0, 1, 2, y, x] += 1
    pairs = zip(before, encoder(pictures), strict=True)
    assert all((a != b).any() for a, b in pairs)


def test_the_body_is_read_from_the_pictures_by_a_path_of_its_own():
    """What the grid has to say does not touch it."""
    encoder, pictures = randomise(Encoder(2, 8, 8, 6, 4, side=2)), drawn(2, 2, 3, 16, 16)
    before = encoder(pictures)
    assert torch.equal(encoder.body(pictures), before.body)
    encoder.enter.weight.zero_()
    assert differ(before, encoder(pictures)) == {"grid", "vector"}


# The transition.


def test_a_new_transition_leaves_grid_and_body_and_moves_the_vector():
    state = states()
    after, _ = transition()(state, torch.ones(2, 7))
    assert torch.equal(after.grid, state.grid) and torch.equal(after.body, state.body)
    assert (after.vector != state.vector).all()


@pytest.mark.parametrize("value", range(7))
def test_every_value_of_an_action_moves_every_part(value):
    step, action = randomise(transition()), torch.zeros(2, 7)
    before, _ = step(states(), action)
    action[1, value] = 1.0
    after, _ = step(states(), action)
    assert all(torch.equal(a, b) for a, b in zip(row(before, 0), row(after, 0), strict=True))
    assert differ(row(before, 1), row(after, 1)) == {"grid", "vector", "body"}


@pytest.mark.parametrize(
    ("part", "moved"),
    [
        ("grid", {"grid", "vector"}),
        ("vector", {"grid", "vector"}),
        ("body", {"grid", "vector", "body"}),
    ],
)
def test_within_a_step_a_body_moves_all_and_is_moved_by_itself_alone(part, moved):
    step, state, action = randomise(transition()), states(), torch.zeros(2, 7)
    turned = state._replace(**{part: -getattr(state, part)})
    assert differ(step(state, action)[0], step(turned, action)[0]) == moved


def test_the_vector_is_moved_by_action_body_and_old_grid():
    step, state, action = randomise(transition()), states(), drawn(2, 7)
    told = torch.cat([action, state.body, step.glance(state.grid)], 1)
    expected = step.vector(told, state.vector)
    torch.testing.assert_close(step(state, action)[0].vector, expected)


def test_the_body_moves_in_units_of_its_usual_change():
    step, state, action = transition().requires_grad_(False), states(), drawn(2, 7)
    step.motion.reach[-1].bias.copy_(torch.tensor([1.0, 1.0]))  # of the hand
    step.motion.met[-1].bias.copy_(torch.tensor([0.0, -3.0, 3.0]))  # of hand and finger
    step.motion.robot[-1].bias.fill_(4.0)
    step.motion.change.copy_(torch.tensor([0.5, 0.5, 0.0, 2.0]))
    expected = state.body + torch.tensor([0.5, -1.0, 0.0, 8.0])
    torch.testing.assert_close(step(state, action)[0].body, expected)


def test_the_grid_is_moved_by_the_new_vector_the_new_body_and_the_action():
    step, state, action = randomise(transition()), states(), drawn(2, 7)
    after, _ = step(state, action)
    condition = step.condition(torch.cat([after.vector, after.body, action], 1))
    moved = step.grid(state.grid, nn.functional.silu(condition))
    torch.testing.assert_close(after.grid, moved)


def test_the_grid_follows_whatever_body_it_is_given():
    step, state, action = randomise(transition()), states(), drawn(2, 7)
    other = state.body.clone()
    other[1] *= -1
    one, two = (step.follow(state.grid, state.vector, b, action) for b in (state.body, other))
    assert torch.equal(one.body, state.body) and torch.equal(two.body, other)
    assert torch.equal(one.vector, state.vector)
    assert torch.equal(one.grid[0], two.grid[0])
    assert not torch.allclose(one.grid[1], two.grid[1])


def test_the_vector_stays_between_minus_one_and_one():
    """A gated unit mixes its last value with a tanh, so it cannot run away."""
    step = randomise(transition())
    state = states()._replace(vector=drawn(2, 6).clamp(-1, 1))
    for _ in range(50):
        vector = step(state, 100 * drawn(2, 7))[0].vector
        state = state._replace(vector=vector)
    assert vector.abs().max() <= 1


def test_vector_and_body_are_exact_under_autocast():
    """In bfloat16 what a step adds to a body would be lost: 1 + 1/1000 is 1."""
    step, state = transition().requires_grad_(False), states()._replace(body=torch.ones(2, 4))
    for part in (step.motion.met, step.motion.robot):
        part[-1].bias.fill_(1.0)
    step.motion.change.fill_(1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        read = randomise(Encoder(2, 8, 8, 6, 4, side=2))(drawn(2, 2, 3, 16, 16))
        after, _ = step(state._replace(grid=state.grid.bfloat16()), torch.ones(2, 7))
    assert {x.dtype for s in (read, after) for x in (s.vector, s.body)} == {torch.float32}
    torch.testing.assert_close(after.body, torch.full((2, 4), 1.001))


# The renderer.


def test_a_new_renderer_draws_its_mean_picture_for_every_state():
    draw, state = renderer().requires_grad_(False), states(3)
    draw.mean.copy_(drawn(12, 8, 8))
    pictures = draw(state.grid, state.body)
    assert pictures.shape == (3, 3, 16, 16) and pictures.dtype == torch.float32
    # Channel 4 c + 2 y + x of the mean is colour c at the pixels (y, x) of every 2 x 2.
    for c, y, x in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        expected = draw.mean[4 * c + 2 * y + x].expand(3, 8, 8)
        assert torch.equal(pictures[:, c, y::2, x::2], expected)


@pytest.mark.parametrize("part", ["grid", "body"])
def test_a_picture_shows_grid_and_body_and_no_other_row(part):
    draw, state = randomise(renderer()), states()
    before = draw(state.grid, state.body)
    getattr(state, part)[1] *= -1
    after = draw(state.grid, state.body)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("way", ["layout", "first.condition", "coarse.condition"])
def test_a_body_is_drawn_as_a_map_and_as_conditions(way):
    """Any alone shows it; without all three it cannot be seen."""
    draw, state = randomise(renderer()), states()
    ways = {name: draw.get_submodule(name) for name in ("layout", "first.condition")}
    ways["coarse.condition"] = draw.coarse.condition
    kept = ways[way].weight.clone()
    for linear in ways.values():
        linear.weight.zero_()
    assert torch.equal(draw(state.grid, state.body), draw(state.grid, -state.body))
    ways[way].weight.copy_(kept)
    assert not torch.allclose(draw(state.grid, state.body), draw(state.grid, -state.body))


def test_a_body_alone_is_drawn_cell_by_cell():
    """Cell (y, x) of the layout lies at the pixels from (8 y, 8 x) on."""
    draw = Renderer(0, (8, 8, 8), 4, 16, side=2).requires_grad_(False)
    nn.init.normal_(draw.leave.weight)
    body, grid = drawn(1, 4), torch.empty(1, 0, 1, 1)
    before = draw(grid, body)
    draw.layout.bias[8 * (2 * 1 + 0) :][:8] += 3.0
    moved = (draw(grid, body) - before).abs().mean(1)
    assert nn.functional.avg_pool2d(moved, 8)[0].argmax().item() == 2


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 3), (3, 1)])
def test_a_cell_is_drawn_where_it_lies(y, x):
    """A new renderer leaves a cell to its 8 x 8 pixels, but for the last convolution's edge."""
    torch.manual_seed(0)
    draw = Renderer(8, (8, 8, 8), 4, 16, side=4).requires_grad_(False)
    nn.init.normal_(draw.leave.weight)
    grid, body = drawn(1, 8, 4, 4), drawn(1, 4)
    before = draw(grid, body)
    grid[0, :, y, x] *= -1
    moved = (draw(grid, body) - before).abs().mean(1)
    by_cell = nn.functional.avg_pool2d(moved, 8)[0]
    assert by_cell.argmax().item() == 4 * y + x

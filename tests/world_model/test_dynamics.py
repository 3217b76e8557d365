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


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weights in module.parameters():
        nn.init.normal_(weights, std=0.3, generator=generator)
    return module.eval().requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def states(n: int = 2) -> State:
    return State(drawn(n, 8, 2, 2), drawn(n, 6))


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


# The three parts.


def test_the_encoder_makes_a_grid_of_cells_of_eight_pixels_and_a_vector():
    encoder = randomise(Encoder(5, 8, 16, 6, side=3))
    grid, vector = encoder(drawn(2, 5, 3, 24, 24))
    assert grid.shape == (2, 16, 3, 3) and vector.shape == (2, 6)


def test_the_encoder_tells_its_pictures_apart_by_their_order():
    encoder, pictures = randomise(Encoder(2, 8, 8, 6, side=2)), drawn(1, 2, 3, 16, 16)
    one, other = encoder(pictures), encoder(pictures.flip(1))
    assert not torch.allclose(one.grid, other.grid)
    assert not torch.allclose(one.vector, other.vector)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (7, 15), (15, 8)])
def test_the_encoder_sees_every_corner_of_a_picture(y, x):
    encoder, pictures = randomise(Encoder(2, 8, 8, 6, side=2)), drawn(1, 2, 3, 16, 16)
    before = encoder(pictures)
    pictures[0, 1, 2, y, x] += 1
    after = encoder(pictures)
    assert (before.grid != after.grid).any() and (before.vector != after.vector).any()


def test_a_new_transition_leaves_the_grid_and_moves_the_vector():
    transition, state = Transition(7, 8, 6, 16, side=2), states()
    after = transition(state, torch.ones(2, 7))
    assert torch.equal(after.grid, state.grid)
    assert (after.vector != state.vector).all()


@pytest.mark.parametrize("value", range(7))
def test_every_value_of_an_action_moves_the_vector_and_the_grid(value):
    transition, action = randomise(Transition(7, 8, 6, 16, side=2)), torch.zeros(2, 7)
    before = transition(states(), action)
    action[1, value] = 1.0
    after = transition(states(), action)
    assert torch.equal(before.grid[0], after.grid[0])
    assert torch.equal(before.vector[0], after.vector[0])
    assert not torch.allclose(before.grid[1], after.grid[1])
    assert not torch.allclose(before.vector[1], after.vector[1])


def test_grid_and_vector_move_each_other_within_a_step():
    transition, action = randomise(Transition(7, 8, 6, 16, side=2)), torch.zeros(2, 7)
    state = states()
    after = transition(state, action)
    grid_moved = transition(state._replace(grid=-state.grid), action)
    vector_moved = transition(state._replace(vector=-state.vector), action)
    assert not torch.allclose(grid_moved.vector, after.vector)
    assert not torch.allclose(vector_moved.grid, after.grid)


def test_the_grid_is_moved_by_the_new_vector_and_the_vector_by_the_old_grid():
    transition, state, action = randomise(Transition(7, 8, 6, 16, side=2)), states(), drawn(2, 7)
    after = transition(state, action)
    told = torch.cat([action, transition.glance(state.grid)], 1)
    torch.testing.assert_close(after.vector, transition.vector(told, state.vector))
    condition = transition.condition(torch.cat([after.vector, action], 1))
    moved = transition.grid(state.grid, nn.functional.silu(condition))
    torch.testing.assert_close(after.grid, moved)


def test_the_vector_stays_between_minus_one_and_one():
    """A gated unit mixes its last value with a tanh; noise aside, it cannot run away."""
    transition = randomise(Transition(7, 8, 6, 16, side=2))
    state = states()._replace(vector=drawn(2, 6).clamp(-1, 1))
    for _ in range(50):
        vector = transition(state, 100 * drawn(2, 7)).vector
        state = state._replace(vector=vector)
    assert vector.abs().max() <= 1


def test_a_new_renderer_draws_its_mean_picture_for_every_state():
    renderer = Renderer(8, (8, 8), 6, 16, side=2).requires_grad_(False)
    renderer.mean.copy_(drawn(12, 8, 8))
    pictures = renderer(states(3))
    assert pictures.shape == (3, 3, 16, 16) and pictures.dtype == torch.float32
    # Channel 4 c + 2 y + x of the mean is colour c at the pixels (y, x) of every 2 x 2.
    for c, y, x in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        expected = renderer.mean[4 * c + 2 * y + x].expand(3, 8, 8)
        assert torch.equal(pictures[:, c, y::2, x::2], expected)


@pytest.mark.parametrize("part", ["grid", "vector"])
def test_a_picture_shows_both_parts_of_its_state_and_no_other_row(part):
    renderer, state = randomise(Renderer(8, (8, 8), 6, 16, side=2)), states()
    before = renderer(state)
    getattr(state, part)[1] *= -1
    after = renderer(state)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (3, 1)])
def test_a_cell_is_drawn_where_it_lies(row, column):
    """Norms see all of a grid; apart from them, new blocks leave a cell to its 8 x 8 pixels."""
    torch.manual_seed(0)
    renderer = Renderer(8, (8, 8), 6, 16, side=4).requires_grad_(False)
    nn.init.normal_(renderer.leave[-1].weight)
    state = State(drawn(1, 8, 4, 4), drawn(1, 6))
    before = renderer(state)
    state.grid[0, :, row, column] *= -1
    moved = (renderer(state) - before).abs().mean(1)
    by_cell = nn.functional.avg_pool2d(moved, 8)[0]
    assert by_cell.argmax().item() == 4 * row + column

"""The recurrent dynamics: pictures become a state, actions move it on, any state can be drawn.

The state is never read back from imagined pictures, so what they blur is not lost. It has a body,
which is what recordings measure: how the robot stands and, where they tell, the object. Where that
is not all there is to see, it also has a grid, which says where things are, and a vector, for
whatever else it takes to go on. The body is told the truth in training, so a picture is sharp
wherever the imagined robot has got to: only the body can drift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.world_model.motion import Motion, exactly
from wm_gym.world_model.presets import CELL

POINTS = 32  # places that the vector is told of at every step
SUMMARY = 96  # other numbers that it is told
LOOKS = 24  # places in a picture that a body is read from
SEEN = 24  # channels of what stands there
HIDDEN = 256  # units between what is looked at and a body


class State(NamedTuple):
    """What is known of n scenes at one moment."""

    grid: Tensor  # (n, d, h, w): where things are
    vector: Tensor  # (n, g): what else is remembered
    body: Tensor  # (n, p): what would be measured, standardised


class BodyEncoder(nn.Module):
    """Remembered pictures to the body that they show: a state without grid and vector."""

    def __init__(self, pictures: int, outer: int, body: int, side: int) -> None:
        """Read `pictures` at once, of `side` x `side` cells."""
        super().__init__()
        self.body = Reader(pictures, outer, body, side)

    def forward(self, pictures: Tensor) -> State:
        """Map pictures (n, t, 3, H, W) in [-1, 1] to a state."""
        body = self.body(pictures)
        return State(body.new_empty(len(body), 0, 1, 1), body[:, :0], body)


class Encoder(BodyEncoder):
    """Remembered pictures to the whole state that they show."""

    def __init__(
        self, pictures: int, outer: int, width: int, vector: int, body: int, side: int
    ) -> None:
        """Read `pictures` at once, into a grid of `side` x `side` cells."""
        super().__init__(pictures, outer, body, side)
        self.enter = nn.Conv2d(pictures * 3 * (CELL // 2) ** 2, outer, 3, padding=1)
        self.outer = Residual(outer)
        self.shrink = nn.Conv2d(outer, width, 3, stride=2, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(width, side, side))
        self.before, self.attend, self.after = Residual(width), Attention(width), Residual(width)
        self.glance = Glance(width, side)
        self.vector = nn.Sequential(
            nn.Linear(self.glance.size, vector), nn.SiLU(), nn.Linear(vector, vector)
        )

    def forward(self, pictures: Tensor) -> State:
        """Map pictures (n, t, 3, H, W) in [-1, 1] to a state."""
        x = F.pixel_unshuffle(pictures.flatten(1, 2), CELL // 2)
        x = self.shrink(self.outer(self.enter(x))) + self.place
        grid = self.after(self.attend(self.before(x)))
        return State(grid, self.vector(self.glance(grid)).float(), self.body(pictures))


class Reader(nn.Module):
    """Remembered pictures to the body that they show, by a path of its own.

    An episode begins with the hand half out of the picture: the few millimetres that tell where it
    stands are lost on a grid that has everything else to say. Softmax maps find what is looked at,
    so that a cube is read alike wherever it lies: recordings begin in a few hundred places only.
    """

    def __init__(self, pictures: int, outer: int, body: int, side: int) -> None:
        """Read `pictures` at once, at twice the resolution of a grid of `side` x `side` cells."""
        super().__init__()
        self.enter = nn.Conv2d(pictures * 3 * (CELL // 2) ** 2, outer, 3, padding=1)
        self.first, self.second = Residual(outer), Residual(outer)
        self.norm = nn.GroupNorm(8, outer)
        self.maps = nn.Conv2d(outer, LOOKS, 1)
        self.what = nn.Conv2d(outer, SEEN, 1)
        self.leave = nn.Sequential(
            nn.Linear(LOOKS * (2 + SEEN), HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, body),
        )
        self.register_buffer("places", places(2 * side), persistent=False)
        nn.init.normal_(self.maps.weight, std=0.3)  # flat maps would all point at the centre

    def forward(self, pictures: Tensor) -> Tensor:
        """Read pictures (n, t, 3, H, W) in [-1, 1]; standardised, float32 (n, p)."""
        x = self.enter(F.pixel_unshuffle(pictures.flatten(1, 2), CELL // 2))
        x = F.silu(self.norm(self.second(self.first(x))))
        share = self.maps(x).float().flatten(2).softmax(-1)  # (n, looks, cells)
        seen = torch.cat([self.places.expand(len(x), -1, -1), self.what(x).float().flatten(2)], 1)
        with exactly(x.device.type):  # millimetres do not survive bfloat16
            return self.leave((share @ seen.mT).flatten(1))


class BodyTransition(nn.Module):
    """One control step: a body and an action to the next body, whatever else there is."""

    def __init__(self, motion: Motion) -> None:
        """Move bodies by `motion`."""
        super().__init__()
        self.motion = motion

    def forward(self, state: State, action: Tensor, alone: bool = False) -> tuple[State, Tensor]:
        """Play action (n, a). The body moves as measurements do by themselves.

        alone: the motion's members take turns row by row, instead of moving all by their mean.
        Returns the next state, and how far apart the members are about it, float32 (n,), which is
        by nothing where one moves alone.
        """
        if alone:
            move = self.motion.alone(state.body, action)
            apart = move.new_zeros(len(move))
        else:
            move, apart = self.motion(state.body, action)
        body = state.body + self.motion.change * move
        return self.follow(state.grid, self.recall(state, action), body, action), apart

    def recall(self, state: State, action: Tensor) -> Tensor:
        """Return the next vector, float32 (n, g): there is none to move."""
        return state.vector

    def follow(self, grid: Tensor, vector: Tensor, body: Tensor, action: Tensor) -> State:
        """Return the state with a body that has moved: there is no grid to follow it."""
        return State(grid, vector, body)


class Transition(BodyTransition):
    """One control step of a whole state."""

    def __init__(
        self,
        motion: Motion,
        action_dim: int,
        width: int,
        vector: int,
        body: int,
        embed: int,
        side: int,
    ) -> None:
        """Build for a grid of `width` channels, and a vector and a body of these lengths."""
        super().__init__(motion)
        self.glance = Glance(width, side)
        self.vector = nn.GRUCell(action_dim + body + self.glance.size, vector)
        self.condition = nn.Linear(vector + body + action_dim, embed)
        self.grid = Residual(width, embed)

    def recall(self, state: State, action: Tensor) -> Tensor:
        """Return the next vector, float32 (n, g)."""
        dtype = state.grid.dtype
        told = [action.to(dtype), state.body.to(dtype), self.glance(state.grid)]
        return self.vector(torch.cat(told, dim=1), state.vector.to(dtype)).float()

    def follow(self, grid: Tensor, vector: Tensor, body: Tensor, action: Tensor) -> State:
        """Let the grid follow a body that has moved."""
        condition = F.silu(self.condition(torch.cat([vector, body, action], dim=1)))
        return State(self.grid(grid, condition), vector, body)


class Renderer(nn.Module):
    """Body, and grid if any, to their picture; the mean picture is a weight, only the rest drawn.

    Without normalisation, which costs a CPU several times what convolutions of these sizes do.
    """

    def __init__(
        self, width: int, widths: tuple[int, int, int], body: int, embed: int, side: int
    ) -> None:
        """Draw bodies and grids of `width` channels (0: there are none).

        widths: channels at an eighth, a quarter and half of the picture's size.
        """
        super().__init__()
        deep, coarse, fine = widths
        self.know = nn.Sequential(
            nn.Linear(body, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU()
        )
        self.layout = nn.Linear(embed, side**2 * deep)  # cell by cell, so that it is channels-last
        self.cells = (side, side, deep)
        if width:
            self.mix = nn.Conv2d(width, deep, 1)
        self.first = Plain(deep, embed)
        self.coarser = nn.Conv2d(deep, 4 * coarse, 1)
        self.coarse = Plain(coarse, embed)
        self.finer = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine = Plain(fine)
        self.leave = nn.Conv2d(fine, 12, 3, padding=1)
        self.mean = nn.Parameter(torch.zeros(12, 4 * side, 4 * side))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, grid: Tensor, body: Tensor) -> Tensor:
        """Draw grids (n, d, h, w) and bodies (n, p) as pictures (n, 3, H, W), about [-1, 1]."""
        with exactly(body.device.type):  # millimetres do not survive bfloat16
            known = self.know(body.float())
        x = self.layout(known).unflatten(1, self.cells).permute(0, 3, 1, 2)
        if grid.shape[1]:
            x = x + self.mix(grid)
        x = self.coarse(enlarged(self.coarser(F.silu(self.first(x, known)))), known)
        x = self.fine(enlarged(self.finer(F.silu(x))))
        return F.pixel_shuffle(self.leave(F.silu(x)).float() + self.mean, 2)


def enlarged(x: Tensor) -> Tensor:
    """Twice as high and wide, from four times as many channels; channels last in memory."""
    return F.pixel_shuffle(x, 2).contiguous(memory_format=torch.channels_last)


class Plain(nn.Module):
    """Two 3x3 convolutions without normalisation; a condition, if any, scales and shifts between.

    It begins as the identity.
    """

    def __init__(self, width: int, embed: int = 0) -> None:
        """Map `width` channels to as many, conditioned on vectors of length `embed`."""
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.condition = nn.Linear(embed, 2 * width) if embed else None
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map x (n, c, h, w), given condition (n, embed)."""
        hidden = self.first(F.silu(x))
        if self.condition is not None:
            hidden = conditioned(hidden, self.condition(condition))
        return x + self.second(F.silu(hidden))


def conditioned(x: Tensor, told: Tensor) -> Tensor:
    """Scale and shift x (n, c, h, w) by told (n, 2 c), which are 0 for no change."""
    scale, shift = told[:, :, None, None].chunk(2, 1)
    return x * (1 + scale) + shift


class Glance(nn.Module):
    """What a vector is told of a grid: averages, and expected places under softmax maps."""

    def __init__(self, width: int, side: int) -> None:
        """Look at grids of `width` channels."""
        super().__init__()
        self.summary = nn.Conv2d(width, SUMMARY, 1)
        self.maps = nn.Conv2d(width, POINTS, 1)
        self.size = SUMMARY + 2 * POINTS
        self.register_buffer("places", places(side), persistent=False)
        nn.init.normal_(self.maps.weight, std=0.3)  # flat maps would all point at the centre

    def forward(self, grid: Tensor) -> Tensor:
        """Sum up grid (n, d, h, w) in (n, size) numbers."""
        share = self.maps(grid).float().flatten(2).softmax(-1)
        places = (share @ self.places.T).flatten(1).to(grid.dtype)
        return torch.cat([self.summary(grid).mean((2, 3)), places], dim=1)


def places(side: int) -> Tensor:
    """Where the cells of a square are, (2, cells): y and x in [-1, 1]."""
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)


class Residual(nn.Module):
    """Two 3x3 convolutions; a condition, if any, scales and shifts between them."""

    def __init__(self, width: int, embed: int = 0) -> None:
        """Map `width` channels to as many, conditioned on vectors of length `embed`."""
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.adapted = nn.GroupNorm(8, width, affine=not embed)
        self.condition = nn.Linear(embed, 2 * width) if embed else None
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map x (n, c, h, w), given condition (n, embed)."""
        hidden = self.adapted(self.first(F.silu(self.norm(x))))
        if self.condition is not None:
            hidden = conditioned(hidden, self.condition(condition))
        return x + self.second(F.silu(hidden))


class Attention(nn.Module):
    """Self-attention over the places of a feature map."""

    def __init__(self, width: int, heads: int = 4) -> None:
        """Build for `width` channels, which `heads` divides."""
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.query_key_value = nn.Conv2d(width, 3 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (n, c, h, w) to the same shape."""
        n, c, h, w = x.shape
        qkv = self.query_key_value(self.norm(x)).view(n, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.leave(mixed.reshape(n, c, h, w))

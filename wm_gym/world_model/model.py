"""The world model: begin with pictures, imagine under actions, decode what is looked at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.checks import check_block
from wm_gym.hub import Pretrained
from wm_gym.world_model.dynamics import (
    BodyEncoder,
    BodyTransition,
    Encoder,
    Renderer,
    State,
    Transition,
)
from wm_gym.world_model.memory import Memory
from wm_gym.world_model.motion import Motion
from wm_gym.world_model.presets import CELL, WorldModelConfig

TILE = 64  # pictures that a CPU draws at once: what lies between its layers stays at hand


class WorldModel(nn.Module, Pretrained):
    """Imagines K frames from what it remembers and K actions (WMPO, section 3.2).

    Departs from the paper for small pictures: what it remembers is not the last frames but a
    recurrent state, begun from pictures and moved on by one action at a time, so that any K from 1
    to `max_chunk` comes from the same weights and nothing is lost to pictures that blur. Part of
    the state is a body, what recordings measure of the robot and perhaps of the object: it is read
    from the pictures that an episode begins with, and imagined from then on. Where all that moves
    is measured, `width` and `vector` are 0 and the body is the whole state. A latent is such a
    state, flat; a frame is drawn only where it is decoded.
    """

    config_class = WorldModelConfig
    asset = "world_model"
    interface = """\
`begin` takes pictures, uint8 (n, t, H, W, 3), and the robot's proprioception where it is known;
`imagine` takes up to 8 actions in [-1, 1], float32 (n, k, 7), and noise, and returns one latent
per action and how uncertain each is; `decode` draws latents as pictures, uint8. What it predicts
is the measured state named in `config.body`, and a grid of image features if `config.width` is
not 0. `gym.make_vec("wm_gym/Lift-v0", num_envs=16, world_model=..., success=...)`
does all of this, with the success classifier that was trained with it."""

    def __init__(self, config: WorldModelConfig) -> None:
        """Build with random weights."""
        super().__init__()
        if config.image_size % CELL:
            raise ValueError(f"image_size must be a multiple of {CELL}, got {config.image_size}.")
        if (config.width == 0) != (config.vector == 0):
            raise ValueError(
                f"A grid has a vector beside it, got width={config.width} and "
                f"vector={config.vector}; set both, or both to 0."
            )
        if config.body[: len(config.robot)] != config.robot:
            raise ValueError(
                f"What a robot measures of itself must come first in the body, got {config.robot} "
                f"of {config.body}; change their order."
            )
        self.config = c = config
        parts = ("hand", "fingers", "speeds", "objects", "turns", "velocities", "joints")
        where = {name: getattr(c, name) for name in parts}
        size = {"members": c.members, "width": c.units, "contact": c.contact_units}
        motion = Motion(c.body_size, c.action_dim, **where, **size)
        if c.width:
            sizes = c.width, c.vector, c.body_size
            self.encoder = Encoder(1 + c.memory, c.outer, *sizes, c.side)
            self.transition = Transition(motion, c.action_dim, *sizes, c.embed, c.side)
        else:
            self.encoder = BodyEncoder(1 + c.memory, c.outer, c.body_size, c.side)
            self.transition = BodyTransition(motion)
        self.renderer = Renderer(c.width, c.draw, c.body_size, c.embed, c.side)
        self.register_buffer("body_mean", torch.zeros(c.body_size))
        self.register_buffer("body_std", torch.ones(c.body_size))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.renderer.mean.device

    @property
    def certain(self) -> bool:
        """Whether it never says how uncertain it is: there is nobody to disagree with."""
        return self.config.members < 2

    def heavy(self) -> list[nn.Module]:
        """Where the time goes: what is worth compiling."""
        return [self.transition, self.renderer]

    def noise_shape(self, k: int) -> tuple[int, int]:
        """Shape of one row's noise for a block of k steps: (k, p)."""
        return (k, self.config.body_size)

    def encode(self, frames: Tensor, last: int | None = None) -> Tensor:
        """Turn pictures, uint8 (n, t, H, W, 3), into the latents of each, float32 (n, t, f).

        The latent of a picture knows the first one and the `memory` - 1 before it, too; where these
        are fewer, the first stands for the others: a scene at rest. `last`: of at most so many
        pictures at the end alone.
        """
        t = frames.shape[1]
        wanted = torch.arange(t)[-last if last else 0 :]
        before = wanted[:, None] + torch.arange(1 - self.config.memory, 1)  # (t, m)
        shown = F.pad(before.clamp(min=0), (1, 0))  # the first picture, then these
        seen = pixels(frames[:, shown].to(self.device)).flatten(0, 1)  # (n * t, 1 + m, 3, H, W)
        return flatten(self.encoder(seen)).unflatten(0, (-1, len(wanted)))

    def decode(self, latents: Tensor) -> Tensor:
        """Draw latents (n, t, f) as pictures, uint8 (n, t, H, W, 3)."""
        state = self.unflatten(latents.flatten(0, 1))
        size = TILE if latents.device.type == "cpu" else len(state.grid)
        tiles = zip(state.grid.split(size), state.body.split(size), strict=True)
        drawn = [to_frames(self.renderer(*tile)) for tile in tiles]
        return torch.cat(drawn).unflatten(0, latents.shape[:2])

    def begin(self, frames: Tensor, robot: Tensor | None = None) -> Memory:
        """Remember pictures, uint8 (n, t, H, W, 3), t >= 1: the first, and the last `memory`.

        robot: float32 (n, q), what robots measure of themselves then: what `config.robot` names, in
        its units. Where it is NaN, or not given at all, it is read from the pictures.
        """
        state = self.encode(frames, last=1)[:, 0].clone()
        if robot is not None:
            known = robot.shape[1]
            told = (robot - self.body_mean[:known]) / self.body_std[:known]
            read = state[:, -self.config.body_size :][:, :known]  # a view
            read.copy_(torch.where(told.isnan(), read, told))
        return Memory(state)

    def imagine(
        self, memory: Memory, actions: Tensor, noise: Tensor
    ) -> tuple[Memory, Tensor, Tensor]:
        """Imagine the k frames that follow `memory` under actions (n, k, 7), 1 <= k <= max_chunk.

        noise: (n, k, p) standard normal, all the randomness there is. Returns the memory after
        these frames, their latents, float32 (n, k, f), and how uncertain each step is, float32
        (n, k); all fresh. A step is as uncertain as the members of the dynamics are apart about it,
        which all move the body with its noise: the root mean square over members and measurements,
        in units of how much each measurement usually changes in a step.
        """
        check_block(actions, self.config.max_chunk)
        states, aparts = self.roll(self.unflatten(memory.state), actions, noise)
        latents = torch.stack([flatten(state) for state in states], dim=1)
        return Memory(latents[:, -1].clone()), latents, torch.stack(aparts, dim=1)

    def imagine_alone(
        self, memory: Memory, actions: Tensor, noise: Tensor
    ) -> tuple[Memory, Tensor]:
        """Imagine as `imagine` does, but let each of e members go on from where it got to itself.

        memory: of n x e futures, e of each row, whose state is (n, e, f). All futures of a row have
        its actions and its noise. Returns the memory after them and latents, float32 (n, e, k, f).
        """
        check_block(actions, self.config.max_chunk)
        n, e = memory.state.shape[:2]
        actions, noise = (x.repeat_interleave(e, dim=0) for x in (actions, noise))
        state = self.unflatten(memory.state.flatten(0, 1))
        states, _ = self.roll(state, actions, noise, alone=True)
        latents = torch.stack([flatten(state) for state in states], dim=1).unflatten(0, (n, e))
        return Memory(latents[:, :, -1].clone()), latents

    def follow(self, memory: Memory, actions: Tensor, measured: Tensor) -> Tensor:
        """Imagine frames under actions (n, t, 7), told after each what was measured, (n, t, p).

        So recorded episodes are imagined without going astray: what the latents show is what really
        came of the actions. No noise; returns latents, float32 (n, t, f).
        """
        state, latents = self.unflatten(memory.state), []
        bodies = (measured - self.body_mean) / self.body_std
        for action, body in zip(actions.unbind(1), bodies.unbind(1), strict=True):
            vector = self.transition.recall(state, action)
            state = self.transition.follow(state.grid, vector, body, action)
            latents.append(flatten(state))
        return torch.stack(latents, dim=1)

    def roll(
        self, state: State, actions: Tensor, noise: Tensor, alone: bool = False
    ) -> tuple[list[State], list[Tensor]]:
        """Move a state on under actions (n, t, a), with noise (n, t, p).

        alone: row r by member r % e. Returns the t states, and how far apart the members are about
        each, float32 (n,).
        """
        states, aparts = [], []
        for action, push in zip(actions.unbind(1), noise.unbind(1), strict=True):
            state = state._replace(body=state.body + self.config.noise * push)
            state, apart = self.transition(state, action, alone)
            states.append(state)
            aparts.append(apart)
        return states, aparts

    def unflatten(self, latents: Tensor) -> State:
        """Latents (n, f) as the state that they are."""
        c = self.config
        parts = [c.width * c.side**2, c.vector, c.body_size]
        grid, vector, body = latents.split(parts, dim=1)
        return State(grid.unflatten(1, (c.width, c.side, c.side)), vector, body)


def flatten(state: State) -> Tensor:
    """A state as latents, float32 (n, f)."""
    return torch.cat([part.float().flatten(1) for part in state], dim=1)


def pixels(frames: Tensor) -> Tensor:
    """Turn pictures uint8 (..., H, W, 3) into float32 (..., 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_frames(drawn: Tensor) -> Tensor:
    """Turn (..., 3, H, W), about [-1, 1], into pictures uint8 (..., H, W, 3): undo `pixels`."""
    levels = ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous()

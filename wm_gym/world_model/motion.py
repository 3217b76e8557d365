"""How measurements move, by themselves: the robot's under its actions, an object's in its hand.

Whether fingers hold or miss is decided by millimetres within a step or two. Three things let small
networks learn that from a few hundred grasps. Contact looks at an object from hand and fingertips,
and nothing else knows of objects, so what was learnt in one place holds in all. Sines and cosines
of places draw sharp lines (Tancik et al. 2020, arXiv 2006.10739). And after single steps, which
teach most and cost least, the loss is on what the networks make of many steps by themselves, where
a wrong decision is wrong for the rest of the clip.

There are several such networks, which begin from other weights and see other clips: their mean is
nearer the truth than each, and where they are apart nothing like it was recorded (Lakshminarayanan
et al. 2017, arXiv 1612.01474).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from wm_gym.world_model.contact import finger_axis, rounded_distance
from wm_gym.world_model.graphs import recorded
from wm_gym.world_model.muon import muon_and_adamw, warm_cosine

SCALES = (2.0, 4.0, 8.0, 16.0)  # frequencies, radians per standard deviation or NEAR
NEAR = 0.08  # metres: as far as a hand reaches around an object
FAR = 1.5  # times NEAR: objects that are further away are all the same
FAST = 4.0  # standard deviations: objects that are faster are all the same
STEEP = 4.0  # a step of a clip passes no longer gradient back than this many of its own loss's
SHOWN = 50  # training steps from one loss in the progress line to the next


@dataclass(frozen=True, slots=True)
class MotionTrainingConfig:
    """How the motion of measurements is learnt."""

    steps: int = 27_000
    mirrored: bool = True
    """Whether every episode also counts as it would have gone in a mirror, for robots whose world
    model says where that stands."""
    single: float = 0.75
    """Share of the training that plays single control steps, as many a batch as clips have later:
    drawn apart, they teach more than one after another, and take half of the time."""
    unroll: int = 12
    """Control steps of a clip that are played by the network alone."""
    batch_size: int = 64
    """Clips a step, for each member."""
    learning_rate: float = 8e-3
    """Muon's at its peak, after a twentieth of the single steps; down to nothing along a cosine.
    AdamW has half of it, for biases."""
    clip_rate: float = 1e-3
    """The same over the clips: more would unlearn the tenths of millimetres that single steps have
    taught."""
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    noise: float = 0.004
    """On the measurements that a clip begins with, in their standard deviations."""


class Motion(nn.Module):
    """One control step of standardised measurements, from themselves and the action.

    Three networks, one after another: how far the hand would reach if nothing were in its way; what
    it meets, which moves fingers and objects and holds the hand up, and knows of the rest only
    where the hand is from them and how far it would reach; and the rest of the robot, which follows
    its hand. Every member has three of its own.
    """

    def __init__(
        self,
        body: int,
        action_dim: int,
        *,
        hand: tuple[int, ...] = (),
        fingers: tuple[int, ...] = (),
        speeds: tuple[int, ...] = (),
        objects: tuple[int, ...] = (),
        turns: tuple[int, ...] = (),
        velocities: tuple[int, ...] = (),
        joints: tuple[int, ...] = (),
        members: int = 1,
        width: int = 192,
        contact: int | None = None,
    ) -> None:
        """Build for measurements of length `body`.

        hand: where among them the hand's x, y and z stand; objects: the same of each object, one
        after another; fingers: where the places of these stand; speeds: where their speeds do;
        turns: where what says how objects are turned does; velocities: where their velocities do;
        joints: where the cosines of a Panda's joints stand, then their sines. With `joints`,
        contact is told where each fingertip is from each object, whose turns must be `faces`:
        raises ValueError for other than nine an object.
        width: units of each layer; contact: those of what is met, where they are others.
        """
        super().__init__()
        if joints and len(turns) != 3 * len(objects):
            raise ValueError(
                f"Fingertips are told from cubes, of which nine turns each say how they stand: got "
                f"{len(turns)} turns for {len(objects) // 3} objects. Name `faces` in the body, or "
                "no joints."
            )
        met = (*fingers, *speeds, *objects, *turns, *velocities)
        robot = tuple(i for i in range(body) if i not in met and i not in hand)
        own = tuple(i for i in range(body) if i not in {*objects, *turns, *velocities})
        tips = len(fingers) if joints else 0
        seen = len(fingers) + len(objects) + len(hand[2:]) + tips * 4 * len(objects) // 3
        near = (1 + 2 * len(SCALES)) * seen + len(speeds) + len(turns) + len(velocities)
        self.members = members
        told = len(own) + action_dim
        self.reach = perceptrons(members, told, len(hand), width)
        entered, left = near + len(hand) + action_dim, len(hand) + len(met)
        self.met = perceptrons(members, entered, left, contact or width)
        self.robot = perceptrons(members, told + len(hand), len(robot), width)
        order = {"hand": hand, "fingers": fingers, "objects": objects, "turns": turns}
        order["joints"] = joints
        order["raw"] = (*speeds, *turns)
        order["velocities"] = velocities
        order["own"] = own
        order["back"] = tuple([*hand, *met, *robot].index(i) for i in range(body))
        for name, indices in order.items():
            self.register_buffer(f"at_{name}", torch.tensor(indices, dtype=torch.long), False)
        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
        self.register_buffer("mean", torch.zeros(body))  # of the measurements, in their units
        self.register_buffer("std", torch.ones(body))
        self.register_buffer("change", torch.ones(body))  # how much each usually changes in a step

    def forward(self, body: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Move bodies (n, p) under actions (n, a), by the mean of what the members say.

        Returns how far they move, float32 (n, p), and how far apart the members are about it,
        float32 (n,): the root mean square of their distance from the mean, over members and
        measurements; 0 for one member. Both in units of `change`.
        """
        moves = self.each(*(x.expand(self.members, *x.shape) for x in (body, action)))
        mean = moves.mean(0)
        return mean, (moves - mean).square().mean((0, 2)).sqrt()

    def alone(self, body: Tensor, action: Tensor) -> Tensor:
        """Move bodies (n x e, p) under actions (n x e, a), row r by member r % e alone.

        Returns how far they move, float32 (n x e, p), in units of `change`.
        """
        told = (x.unflatten(0, (-1, self.members)).transpose(0, 1) for x in (body, action))
        return self.each(*told).transpose(0, 1).flatten(0, 1)

    def each(self, body: Tensor, action: Tensor) -> Tensor:
        """Let every member e move bodies of its own, (e, n, p), under its actions (e, n, a)."""
        with exactly(body.device.type):  # millimetres do not survive bfloat16
            body, action = body.float(), action.float()
            own = torch.cat([body[..., self.at_own], action], dim=-1)
            reach = self.reach(own)
            met = self.met(torch.cat([self.near(body), reach, action], dim=-1))
            held, met = met.tensor_split([len(self.at_hand)], dim=-1)
            hand = reach + held
            robot = self.robot(torch.cat([own, hand], dim=-1))
            return torch.cat([hand, met, robot], dim=-1)[..., self.at_back]

    def near(self, body: Tensor) -> Tensor:
        """What decides contact, (..., q): places with sines and cosines, speeds, turns, velocities.

        The places are those of the fingers, of the hand from each object, and of the hand's height;
        then, where it is known, of the fingertips from each object (see `touching`).
        """
        metres = body * self.std + self.mean
        hand, objects = metres[..., self.at_hand], metres[..., self.at_objects]
        away = ((hand.tile(objects.shape[-1] // 3) - objects) / NEAR).clamp(-FAR, FAR)
        height = ((hand - self.mean[self.at_hand]) / NEAR).clamp(-FAR, FAR)[..., 2:]
        told = [body[..., self.at_fingers], away, height]
        if len(self.at_joints):
            told.append((self.touching(metres) / NEAR).clamp(-FAR, FAR))
        seen = torch.cat(told, dim=-1)
        waves = (seen[..., None, :] * self.scales[:, None]).flatten(-2)
        raw, moved = body[..., self.at_raw], body[..., self.at_velocities].clamp(-FAST, FAST)
        return torch.cat([seen, waves.sin(), waves.cos(), raw, moved], dim=-1)

    def touching(self, metres: Tensor) -> Tensor:
        """Where fingertips are from each object: x, y, z and `rounded_distance`, in metres.

        metres: measurements (..., p) in their units. Returns (..., 4 x tips x objects).
        """
        objects = metres[..., self.at_objects].unflatten(-1, (1, -1, 3))
        faces = metres[..., self.at_turns].unflatten(-1, (1, -1, 9))
        axis = finger_axis(*metres[..., self.at_joints].chunk(2, dim=-1))
        along = metres[..., self.at_fingers, None] * axis[..., None, :]  # (..., tips, 3)
        away = (metres[..., None, self.at_hand] + along)[..., None, :] - objects
        distance = rounded_distance(away, faces)
        return torch.cat([away, distance[..., None]], dim=-1).flatten(-3)


def exactly(kind: str) -> AbstractContextManager[object]:
    """Context without autocast on devices of this kind."""
    if torch.amp.is_autocast_available(kind):  # the `meta` device knows none
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class Linears(nn.Module):
    """A linear map for each of e members: (e, n, i) to (e, n, o)."""

    def __init__(self, members: int, entered: int, left: int) -> None:
        """Begin as torch's linear maps do."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, entered, left))
        self.bias = nn.Parameter(torch.empty(members, 1, left))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(entered**-0.5), entered**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (e, n, i)."""
        return torch.baddbmm(self.bias, x, self.weight)


def perceptrons(members: int, entered: int, left: int, width: int) -> nn.Sequential:
    """Three hidden layers for each member; what leaves them is 0 before training."""
    layers = nn.Sequential(
        Linears(members, entered, width),
        nn.SiLU(),
        Linears(members, width, width),
        nn.SiLU(),
        Linears(members, width, width),
        nn.SiLU(),
        Linears(members, width, left),
    )
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers


class Bounded(torch.autograd.Function):
    """Bodies (..., p) as they are, the gradient of each no longer than `most`.

    Where a grasp is about to slip, what happens many steps later depends on it thousands of times
    as much as elsewhere. Clipped all together, such clips leave nothing of the others' gradients.
    """

    @staticmethod
    def forward(ctx: Any, body: Tensor, unit: Tensor, most: float) -> Tensor:
        """Take bodies, and units (p,) times which their gradient may be as long as `most`."""
        ctx.save_for_backward(unit)
        ctx.most = most
        return body.view_as(body)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Shorten what is too long."""
        (unit,) = ctx.saved_tensors
        size = (gradient * unit).norm(dim=-1, keepdim=True)
        return gradient * (ctx.most / size.clamp_min(ctx.most)), None, None


def fit_motion(
    motion: Motion,
    bodies: Sequence[Tensor],
    actions: Sequence[np.ndarray],
    config: MotionTrainingConfig,
    seed: int,
    weights: Sequence[float] | None = None,
) -> float:
    """Train `motion` in place on episodes: standardised measurements (t + 1, p), actions (t, a).

    Every member plays clips of its own draw. `weights`: the relative chance of a clip by its
    episode. It is frozen afterwards. Returns the mean absolute error over the last tenth of the
    steps, in units of `change`.
    """
    motion.requires_grad_(True)
    device, unroll = motion.change.device, config.unroll
    long = [i for i, taken in enumerate(actions) if len(taken) >= unroll]
    if not long:
        raise ValueError(
            f"Motion is learnt from clips of {unroll} steps; none of {len(actions)} episodes is as "
            "long. Pass longer episodes, or a smaller `motion.unroll`."
        )
    told = torch.cat([bodies[i] for i in long]).to(device)
    taken = torch.cat([torch.from_numpy(actions[i]) for i in long]).to(device)
    lengths = torch.tensor([len(actions[i]) for i in long], device=device)
    whole = lengths - unroll + 1  # clips of an episode
    episode = torch.repeat_interleave(torch.arange(len(long), device=device), whole)
    first = torch.arange(len(episode), device=device) - (whole.cumsum(0) - whole)[episode]
    act = (lengths.cumsum(0) - lengths)[episode] + first  # row of a clip's first action
    at = act + episode  # and of its first measurement: episodes have one more
    chances = torch.tensor([weights[i] for i in long] if weights else [1.0] * len(long)).to(device)
    edges = chances[episode].double().cumsum(0)
    layers = [layer for layer in motion.modules() if isinstance(layer, Linears)]
    matrices, biases = [x.weight for x in layers], [x.bias for x in layers]
    generator = torch.Generator(device).manual_seed(seed)
    # Bodies that a motion early in its training lets go: clips that blow up would end in NaN.
    low, high = told.amin(0) - 1, told.amax(0) + 1  # standard deviations

    def teach(body: Tensor, actions: Tensor, truth: Tensor) -> Tensor:
        """Leave the gradients of the loss on clips: (e, n, p), (t, e, n, a), (t, e, n, p)."""
        loss = torch.zeros((), device=device)
        most = STEEP * body.shape[-1] ** 0.5 / truth.numel()  # of p signs, over what they average
        for action, true in zip(actions, truth, strict=True):
            body = (body + motion.change * motion.each(body, action)).clamp(low, high)
            body = Bounded.apply(body, motion.change, most)
            loss = loss + ((body - true) / motion.change).abs().mean() / len(actions)
        motion.zero_grad()
        loss.backward()
        return loss.detach()

    single, losses, teachers = math.ceil(config.single * config.steps), [], {}
    for step in (bar := trange(config.steps, desc="motion")):
        if step in (0, single):
            if step < single:
                played, rate, end = 1, config.learning_rate, single
            else:
                played, rate, end = unroll, config.clip_rate, config.steps
            optimizers = muon_and_adamw(matrices, biases, rate, config.weight_decay)
            schedules = warm_cosine(optimizers, end - step)
        size = (motion.members, config.batch_size * unroll // played)
        random = {"generator": generator, "device": device}
        drawn = edges[-1] * torch.rand(size, dtype=torch.double, **random)
        clip = torch.searchsorted(edges, drawn, right=True).clamp_max(len(at) - 1)
        begin = torch.randint(unroll - played + 1, size, **random)
        begun = told[at[clip] + begin]
        body = begun + config.noise * torch.randn(begun.shape, **random)
        ahead = begin + torch.arange(played, device=device)[:, None, None]  # (t, e, n)
        clips = body, taken[act[clip] + ahead], told[at[clip] + 1 + ahead]
        if played not in teachers:
            teachers[played] = recorded(teach, *clips)
        loss = teachers[played](*clips)
        nn.utils.clip_grad_norm_(motion.parameters(), config.grad_clip)
        for each in (*optimizers, *schedules):
            each.step()
        losses.append(loss.clone())
        if step % SHOWN == 0:  # to read it is to wait for it
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    motion.requires_grad_(False)
    return float(torch.stack(losses[-max(1, config.steps // 10) :]).mean())

"""Sizes of world models: one code, one table."""

from __future__ import annotations

from dataclasses import dataclass

MIDDLE = 0.0  # of robosuite's table, where a robot stands; metres
CELL = 8  # pixels along an edge of a cell of the grid
BODY = {
    "robot0_eef_pos": 3,
    "robot0_joint_pos_cos": 7,
    "robot0_joint_pos_sin": 7,
    "robot0_joint_vel": 7,
    "robot0_gripper_qpos": 2,
    "robot0_gripper_qvel": 2,
}


@dataclass(frozen=True, slots=True)
class WorldModelConfig:
    """Shape of a pixel world model; the defaults are `nano`, without its hand."""

    image_size: int = 64
    memory: int = 4
    """Recent frames that an episode begins from, beside the first (WMPO 4.1: 4, without it)."""
    max_chunk: int = 8
    """Most actions in one call (WMPO 4.1: 8)."""
    action_dim: int = 7
    outer: int = 64
    """Channels of the encoder at twice the grid's resolution."""
    width: int = 128
    """Channels of the grid; 0 where the body says all that there is to draw."""
    vector: int = 384
    """Length of the vector; 0 without a grid."""
    body: tuple[str, ...] = tuple(BODY)
    """What is measured beside the pictures, by robomimic's keys (or "key[:3]", a part of one);
    episodes to train on need it, playing does not."""
    body_size: int = sum(BODY.values())
    """Numbers that these hold together."""
    robot: tuple[str, ...] = ()
    """What of `body` a robot measures of itself, and so knows where an episode begins, without
    reading it from a picture; these come first in `body`."""
    hand: tuple[int, ...] = ()
    """Where in the body the hand's place stands: x, y and z, in metres."""
    fingers: tuple[int, ...] = ()
    """Where the places of the fingers stand."""
    speeds: tuple[int, ...] = ()
    """Where the speeds of the fingers stand."""
    objects: tuple[int, ...] = ()
    """Where the places of objects stand: x, y and z of each, in metres."""
    turns: tuple[int, ...] = ()
    """Where what says how objects are turned stands."""
    velocities: tuple[int, ...] = ()
    """Where the velocities of objects stand: m/s, then rad/s, three each."""
    joints: tuple[int, ...] = ()
    """Where the cosines of a Panda's joints stand, then their sines: with these and `turns`, what
    hand and object do to each other is told of its fingertips. () for other robots."""
    mirror: float | None = None
    """Where a Panda stands, y in metres: it and its table are alike on both sides of that (see
    `wm_gym.data.symmetry`); None for other robots."""
    members: int = 4
    """Networks that move the body by their mean; where they are apart, the model is uncertain."""
    units: int = 192
    """Units in each layer of these."""
    contact_units: int | None = None
    """The same where they tell what a hand meets; None: `units`."""
    draw: tuple[int, int, int] = (64, 48, 24)
    """Channels of the renderer at an eighth, a quarter and half of the picture's resolution."""
    embed: int = 256
    """Length of the conditioning vectors."""
    noise: float = 0.0005
    """Noise on the body at every imagined step; in its standard deviations. It adds up."""

    @property
    def side(self) -> int:
        """Cells along an edge of the grid."""
        return self.image_size // CELL

    @property
    def channels(self) -> int:
        """Channels of the grid that begins a latent."""
        return self.width

    @property
    def latent_size(self) -> int:
        """Numbers in a latent: the grid, then the vector, then the body."""
        return self.width * self.side**2 + self.vector + self.body_size


PRESETS = {
    "nano": WorldModelConfig(
        robot=tuple(BODY), hand=(0, 1, 2), fingers=(24, 25), speeds=(26, 27), mirror=MIDDLE
    ),
    # For recordings that say where the object is, as simulators' do: it is read from the pictures
    # and moved like the robot, and how a hand meets an object is learnt from far fewer episodes.
    # Nothing else moves, so that pictures are drawn from what is measured alone.
    "nano-object": WorldModelConfig(
        width=0,
        vector=0,
        body=(*BODY, "object[:3]", "faces:object[3:7]", "object_velocity"),
        robot=tuple(BODY),
        body_size=sum(BODY.values()) + 3 + 9 + 6,
        hand=(0, 1, 2),
        fingers=(24, 25),
        speeds=(26, 27),
        objects=(28, 29, 30),
        turns=tuple(range(31, 40)),
        velocities=tuple(range(40, 46)),
        joints=tuple(range(3, 17)),
        units=256,
        contact_units=384,
        draw=(128, 64, 32),  # with matrix instructions in bfloat16 a sixth slower than (64, 48, 24)
        mirror=MIDDLE,
    ),
}

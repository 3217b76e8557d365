"""Scripted experts that read the simulator's state, with knobs that make them err on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

OPEN, CLOSED = -1.0, 1.0
ABOVE = 0.06  # metres over the object from where the descent begins
NEAR = 0.015  # metres: a waypoint counts as reached
GRASP_STEPS = 7  # control steps that the gripper needs to close
DESCENT = 15  # control steps after which it closes wherever it is
LIFT_HEIGHT = 0.12  # metres over the table that the lift aims for


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """How well the expert plays; the defaults succeed nearly always."""

    noise: float = 0.03
    """Standard deviation of the Gaussian noise on every arm action."""
    shake: float = 0.0
    """Where it is above 0, each episode draws its noise evenly from 0 to this."""
    gain: float = 20.0
    """Action per metre of distance to the waypoint; an action of 1 asks for 0.05 m."""
    speed: float = 1.0
    """Largest arm action."""
    offset: float = 0.0
    """Standard deviation of the horizontal error of each attempt; metres."""
    clumsy: float = 0.0
    """Chance that an attempt's grasp is drawn at random: how fast the hand comes down, at which
    height and how far from there it closes, for how long, and where the arm goes meanwhile."""
    slip: float = 0.0
    """Chance that an attempt opens the gripper again on its way up."""
    blind: int = 0
    """Up to this many steps of a lift are played before it is checked that the object came along.
    Else a hand that keeps rising would always hold it, and a world model would learn just that."""
    wander: float = 0.0
    """Chance that an attempt begins with a walk to a random place, on table or object at times."""
    carry: int = 10_000
    """Steps of a lift after which the object is let go and tried anew."""
    length: int | None = None
    """Control steps of an episode; None ends it soon after its first success."""


DEMONSTRATION = ExpertConfig()
PLAY = ExpertConfig(
    noise=0.15,
    offset=0.02,
    clumsy=0.7,
    slip=0.15,
    blind=12,
    wander=0.4,
    carry=16,
    length=320,
)
UNFILMED = replace(PLAY, shake=0.45)


class LiftExpert:
    """Moves over the cube, descends, closes, lifts; tries again when the cube stayed behind."""

    def __init__(self, env: Any, config: ExpertConfig, rng: np.random.Generator) -> None:
        """Play `env` (a robosuite Lift) as `config` says, with randomness from `rng`."""
        if config.shake:
            config = replace(config, noise=rng.uniform(0, config.shake))
        self.env, self.config, self.rng = env, config, rng
        self._new_attempt()

    def act(self) -> np.ndarray:
        """Return the next action, (7,) float32 in [-1, 1]."""
        hand = self.env.robots[0].controller.ee_pos
        cube = self.env.sim.data.body_xpos[self.env.cube_body_id]
        target, gripper = self._phase(hand, cube)
        action = np.zeros(7)
        action[:3] = np.clip(self.gain * (target - hand), -1, 1) * self.config.speed
        if self.phase == "grasp" and self.drift is not None:
            action[:3] = self.drift
        action[:6] += self.config.noise * self.rng.standard_normal(6) * [1, 1, 1, 0.3, 0.3, 0.3]
        action[6] = gripper
        return np.clip(action, -1, 1).astype(np.float32)

    def _phase(self, hand: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the waypoint and the gripper command, and move on when a waypoint is reached."""
        aim = cube + self.error
        self.clock -= 1
        if self.phase == "wander":
            if self.clock <= 0:
                self.phase = "approach"
            return cube + self.detour, self.fingers
        if self.phase == "approach":
            if np.linalg.norm((aim - hand)[:2]) < NEAR:
                self.phase, self.clock = "descend", DESCENT
            return aim + [0, 0, ABOVE], OPEN
        if self.phase == "descend":
            if np.linalg.norm(aim - hand) < self.reach or self.clock <= 0:
                self.phase, self.clock = "grasp", self.wait
            return aim, OPEN
        if self.phase == "grasp":
            if self.clock <= 0:
                self.phase, self.clock = "lift", self.slip_after
                self.lift = np.array([hand[0], hand[1], self.table + LIFT_HEIGHT])
            return aim, CLOSED
        self.blind -= 1
        missed = hand[2] - cube[2] > 0.04 and self.blind <= 0
        if missed or self.clock <= 0:
            self._new_attempt()
            return hand, OPEN
        return self.lift, CLOSED

    def _new_attempt(self) -> None:
        config, rng = self.config, self.rng
        self.table = float(self.env.table_offset[2])
        self.error = np.append(config.offset * rng.standard_normal(2), 0.0)
        self.gain, self.reach, self.wait, self.drift = config.gain, NEAR, GRASP_STEPS, None
        if rng.random() < config.clumsy:
            self.gain *= rng.uniform(0.5, 3)
            self.error[2] = rng.uniform(-0.03, 0.03)
            self.reach = rng.uniform(0.01, 0.04)
            self.wait = int(rng.integers(10))
            self.drift = rng.choice(2) * rng.uniform([-0.3, -0.3, -1], [0.3, 0.3, 1])
        self.blind = rng.integers(config.blind + 1)
        self.slip_after = rng.integers(2, 12) if rng.random() < config.slip else config.carry
        self.phase, self.clock = "approach", 0
        if rng.random() < config.wander:
            self.phase, self.clock = "wander", int(rng.integers(4, 16))
            spread = rng.choice([0.04, 0.2])  # around the object, or anywhere
            self.detour = rng.uniform([-spread, -spread, -0.05], [spread, spread, spread])
            self.fingers = rng.choice([OPEN, CLOSED])


EXPERTS = {"Lift": LiftExpert}

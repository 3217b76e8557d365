"""The process that owns one simulator, driven over its pipes by `wm_gym.real.pool`.

Every request is a pure function of its arguments (the state travels with it), so a worker that dies
loses nothing: the same request goes to its successor. The worker ends when its input does, in
the middle of a request too, so it cannot outlive the process that started it, however that ended.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from wm_gym.real.expert import EXPERTS, ExpertConfig
from wm_gym.real.simulation import Simulation
from wm_gym.tasks import Task


class Playback(NamedTuple):
    """What came of playing some actions from a state."""

    state: np.ndarray  # (d,) float64, after the last action played
    frames: np.ndarray  # (played, H, W, 3) uint8, or only the last one: (1, H, W, 3)
    success: np.ndarray  # (played,) bool
    states: np.ndarray  # (played + 1, p) float64: time, qpos, qvel, before and after each action
    low_dim: dict[str, np.ndarray]  # (played + 1, d) float32 each, see Simulation.low_dim


class Recording(NamedTuple):
    """An episode of the scripted expert."""

    frames: np.ndarray  # (t + 1, H, W, 3) uint8; (t + 1, 0, 0, 3) where nobody filmed
    actions: np.ndarray  # (t, 7) float32
    success: np.ndarray  # (t,) bool
    states: np.ndarray  # (t + 1, p) float64
    low_dim: dict[str, np.ndarray]  # (t + 1, d) float32 each


class Track:
    """What is noted of a simulation at every step, pictures apart."""

    def __init__(self, simulation: Simulation) -> None:
        """Note where it is now."""
        self.simulation = simulation
        self._states: list[np.ndarray] = []
        self._low_dim: list[dict[str, np.ndarray]] = []
        self.note()

    def note(self) -> None:
        """Note where it is now."""
        self._states.append(self.simulation.get_state()[: self.simulation.physics_size])
        self._low_dim.append(self.simulation.low_dim())

    @property
    def states(self) -> np.ndarray:
        """Time, qpos and qvel, float64 (steps, p)."""
        return np.stack(self._states)

    @property
    def low_dim(self) -> dict[str, np.ndarray]:
        """Observations by key, float32 (steps, d) each."""
        return {key: np.stack([row[key] for row in self._low_dim]) for key in self._low_dim[0]}


class Worker:
    """The requests a worker answers."""

    def __init__(self, task: Task, full_meshes: bool) -> None:
        self.simulation = Simulation(task, full_meshes)

    def sample_start(self, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Draw a start: its state (d,) float64, picture (H, W, 3) uint8, measurements (d,) each."""
        state = self.simulation.sample_start(seed)
        return state, self.simulation.render(), self.simulation.low_dim()

    def play(
        self, state: np.ndarray, actions: np.ndarray, stop_on_success: bool, every_frame: bool
    ) -> Playback:
        """Play `actions` (k, 7) from `state`, at most until the first success."""
        simulation = self.simulation
        simulation.set_state(state)
        frames, success, track = [], [], Track(simulation)
        for action in actions:
            simulation.step(action)
            success.append(simulation.success())
            track.note()
            if every_frame:
                frames.append(simulation.render())
            if stop_on_success and success[-1]:
                break
        if not every_frame:
            frames.append(simulation.render())
        return Playback(
            simulation.get_state(), np.stack(frames), np.array(success), track.states, track.low_dim
        )

    def demonstrate(
        self,
        state: np.ndarray,
        expert: ExpertConfig,
        seed: int,
        steps: int,
        tail: int,
        filmed: bool = True,
    ) -> Recording:
        """Let the expert play from `state`: `steps` steps, or `tail` past its first success.

        An expert with a `length` of its own plays that. Unless it is `filmed`, its pictures are
        empty, (t + 1, 0, 0, 3).
        """
        simulation = self.simulation
        simulation.set_state(state)
        player = EXPERTS[simulation.task.name](simulation.env, expert, np.random.default_rng(seed))
        look = simulation.render if filmed else _blind
        frames, track = [look()], Track(simulation)
        actions, success = [], []
        end = expert.length or steps
        while len(actions) < end:
            actions.append(player.act())
            simulation.step(actions[-1])
            success.append(simulation.success())
            frames.append(look())
            track.note()
            if expert.length is None and success[-1] and not any(success[:-1]):
                end = len(actions) + tail
        return Recording(
            np.stack(frames), np.stack(actions), np.array(success), track.states, track.low_dim
        )


def _blind() -> np.ndarray:
    return np.zeros((0, 0, 3), np.uint8)


def main() -> None:
    """Answer requests until the input ends."""
    faulthandler.enable()  # a crash in native code says where
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the error stream, not into the answers
    requests: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    worker: Any = None
    try:
        worker = Worker(*requests.get())
        reply: tuple[str, Any] = ("ready", None)
    except Exception as error:
        reply = ("failed", error if isinstance(error, ImportError) else traceback.format_exc())
    while True:
        data = pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)
        answers.write(len(data).to_bytes(8, "little") + data)
        answers.flush()
        if worker is None:
            os._exit(1)
        name, arguments = requests.get()
        try:
            reply = ("done", getattr(worker, name)(*arguments))
        except Exception:
            reply = ("failed", traceback.format_exc())


def _receive(requests: SimpleQueue[Any]) -> None:
    """Pass requests on; when the parent is gone, end this process, whatever it is doing."""
    try:
        while True:
            requests.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        pass
    except Exception:
        traceback.print_exc()
    os._exit(1)

"""The real world behind the contract: robosuite, played by a pool of simulator processes."""

from __future__ import annotations

from typing import Any

import numpy as np

from wm_gym.checks import check_count
from wm_gym.contract import WorldVectorEnv
from wm_gym.machine import cores
from wm_gym.real.pool import CALL_TIMEOUT, SimulationPool
from wm_gym.real.worker import Playback
from wm_gym.state import Played


class RealVectorEnv(WorldVectorEnv):
    """n episodes in robosuite, played by `workers` processes.

    A row is nothing but its simulator state, so any worker can play any row, a row costs no memory
    to speak of, and a worker that dies is replaced without loss. A picture is rendered only where
    it is looked at: the last of a chunk, or each with `return_frames`. `full_meshes=True` draws
    every triangle of the robot instead of those that a pixel can show.

    A worker that dies, or takes more than `timeout` seconds for a step of one row, is replaced with
    a warning that names the row; where its successor fails too, `step` raises RuntimeError and
    changes nothing. So a hang costs a step at most 2 x `timeout` and the start of a worker.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        workers: int | None = None,
        full_meshes: bool = False,
        timeout: float = CALL_TIMEOUT,
        **contract: Any,
    ) -> None:
        """Start the simulators; `contract` holds the keywords of `WorldVectorEnv`."""
        super().__init__(task, num_envs, **contract)
        self._check_starts()
        workers = min(num_envs, cores()) if workers is None else check_count("workers", workers)
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}.")
        self._simulations = SimulationPool(self.task, workers, full_meshes, timeout)
        self._states = np.zeros((num_envs, self.pool.states.shape[1]))
        self.playbacks: list[Playback | None] = [None] * num_envs
        """What the simulators said of every row's last step; None of rows that did not play."""

    def _check_starts(self) -> None:
        if self.pool.past is not None or np.isnan(self.pool.states).any():
            raise ValueError(
                "These starts are moments of recorded episodes, known by their pictures alone; the "
                "real world needs a simulator's state: use starts that were drawn in it."
            )
        size, (height, width) = self.task.image_size, self.pool.frames.shape[1:3]
        if (height, width) != (size, size):
            raise ValueError(
                f"The simulator draws {size} x {size} pictures and the starts are {height} x "
                f"{width}; use starts of the simulator's size."
            )

    def _begin(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self._states[rows] = self.pool.states[starts]
        return self.pool.frames[starts]

    def _play(self, rows: np.ndarray, actions: np.ndarray, steps: np.ndarray) -> Played:
        stop = not self.ignore_terminations
        requests = [
            (self._states[row], actions[i, : steps[i]], stop, self.return_frames)
            for i, row in enumerate(rows)
        ]
        results = self._simulations.map("play", requests, [f"row {row}" for row in rows])
        self._states[rows] = [result.state for result in results]
        played = dict(zip(rows.tolist(), results, strict=True))
        self.playbacks = [played.get(row) for row in range(self.num_envs)]
        m, k = actions.shape[:2]
        success = np.zeros((m, k), bool)
        for i, result in enumerate(results):
            success[i, : len(result.success)] = result.success
        frames = None
        if self.return_frames:
            shown = [np.minimum(np.arange(k), len(result.frames) - 1) for result in results]
            frames = np.stack([r.frames[index] for r, index in zip(results, shown, strict=True)])
        return Played(
            image=np.stack([result.frames[-1] for result in results]),
            success=success,
            probability=success.astype(np.float32),
            played=np.array([len(result.success) for result in results]),
            uncertainty=np.zeros((m, k), np.float32),
            frames=frames,
        )

    def _save(self, rows: np.ndarray) -> np.ndarray:
        return self._states[rows]

    def _load(self, rows: np.ndarray, hidden: np.ndarray) -> None:
        self._states[rows] = hidden

    def close_extras(self, **kwargs: Any) -> None:
        """End the simulator processes."""
        if hasattr(self, "_simulations"):
            self._simulations.close()

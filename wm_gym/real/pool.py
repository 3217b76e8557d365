"""A pool of simulator processes that answer pure requests and are replaced when they die."""

from __future__ import annotations

import os
import pickle
import queue
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wm_gym.real.rendering import choose_gl
from wm_gym.tasks import Task

START_TIMEOUT = 120.0  # seconds for a worker to build its simulator
CALL_TIMEOUT = 120.0  # seconds for one request; a chunk of 8 steps takes a tenth of one
COMMAND = "from wm_gym.real.worker import main; main()"  # what a worker process runs


class WorkerDied(RuntimeError):
    """A worker process ended, or did not answer in time."""


class SimulationPool:
    """Runs requests of `wm_gym.real.worker.Worker` on `workers` processes, one simulator each."""

    def __init__(self, task: Task, workers: int | None = None, full_meshes: bool = False) -> None:
        """Start the processes; raises ImportError or RuntimeError when robosuite cannot run."""
        workers = workers or os.cpu_count() or 1
        self._arguments = (task, full_meshes)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="simulation")
        self._idle: queue.Queue[_Process] = queue.Queue()
        processes = [_Process(self._arguments) for _ in range(workers)]
        try:
            for process in processes:
                process.receive(START_TIMEOUT)
                self._idle.put(process)
        except BaseException:
            for process in processes:
                process.close()
            raise
        self.workers = workers

    def map(self, name: str, requests: list[tuple]) -> list[Any]:
        """Answer `Worker.<name>(*request)` for every request, in order.

        A request whose worker dies is tried once more on a new one; RuntimeError names the
        request's place in the list when that one dies too.
        """
        futures = [self._threads.submit(self._call, name, i, r) for i, r in enumerate(requests)]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def __enter__(self) -> SimulationPool:
        """Return the pool; it closes with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        self.close()

    def close(self) -> None:
        """End all processes; safe to call twice."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def _call(self, name: str, index: int, request: tuple) -> Any:
        process = self._idle.get()
        try:
            try:
                return process.call(name, request)
            except WorkerDied:
                process.close()
                process = _Process(self._arguments)
                process.receive(START_TIMEOUT)
                return process.call(name, request)
        except WorkerDied as error:
            raise RuntimeError(
                f"The simulator died twice on request {index} ({name}): {error}"
            ) from error
        finally:
            self._idle.put(process)


class _Process:
    """One worker process and its pipes."""

    def __init__(self, arguments: tuple[Task, bool]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # One GL thread a worker: the workers are the parallelism.
        threads = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "MUJOCO_GL": choose_gl(), "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for this process: workers end when their input does
        )
        self._send(arguments)

    def call(self, name: str, request: tuple) -> Any:
        self._send((name, request))
        return self.receive(CALL_TIMEOUT)

    def receive(self, timeout: float) -> Any:
        """Return the next answer; raises WorkerDied, or the worker's own error."""
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            self.close()
            raise WorkerDied(f"no answer within {timeout:.0f} s")
        try:
            kind, answer = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerDied(f"process ended with code {self._process.wait()}") from None
        if kind == "failed":
            if isinstance(answer, ImportError):
                raise answer
            raise RuntimeError(f"robosuite:\n{answer}")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _send(self, message: Any) -> None:
        try:
            pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: given up, and its pipes closed
            raise WorkerDied(f"process ended with code {self._process.wait()}") from None

"""A pool of simulator processes that answer pure requests and are replaced when they die."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from wm_gym.checks import check_count
from wm_gym.errors import UserError
from wm_gym.machine import cores
from wm_gym.real.rendering import choose_gl
from wm_gym.tasks import Task

START_TIMEOUT = 120.0  # seconds for a worker to build its simulator
CALL_TIMEOUT = 120.0  # seconds for one request; a chunk of 8 steps takes a tenth of one
LAST_LINES = 20  # of a worker's error stream, told when it dies
COMMAND = "from wm_gym.real.worker import main; main()"  # what a worker process runs


class SimulationPool:
    """Runs requests of `wm_gym.real.worker.Worker` on `workers` processes, one simulator each.

    No call hangs: a worker has `timeout` seconds for a request, and START_TIMEOUT to come up.
    """

    def __init__(
        self,
        task: Task,
        workers: int | None = None,
        full_meshes: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Start the processes; raises ImportError or UserError when robosuite cannot run.

        Raises ValueError for `workers` below 1; None is one for each core.
        """
        self.workers = cores() if workers is None else check_count("workers", workers)
        self.timeout = timeout
        self._arguments = (task, full_meshes)
        self._lock = threading.Lock()
        self._processes: list[_Process] = []
        self._end_all = weakref.finalize(self, _close_all, self._processes, os.getpid())
        try:
            for number in range(self.workers):
                self._processes.append(_Process(self._arguments, number))
            while any(process.starting for process in self._processes):
                list(self._listen())
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> Any:
        """Refuse to be copied or pickled."""
        raise TypeError(
            "Simulator processes cannot be copied or pickled: make another environment, and carry "
            "episodes over with get_state and set_state."
        )

    def map(
        self, name: str, requests: Sequence[tuple], labels: Sequence[str] | None = None
    ) -> list[Any]:
        """Answer `Worker.<name>(*request)` for every request, in order.

        A worker that dies or does not answer in time is replaced, with a warning, and its request
        tried once more. Raises UserError, which calls the request by its label and quotes the
        worker's last lines, when that fails too, and RuntimeError when the simulator raises. After
        an error or Ctrl-C the pool can be used again.
        """
        labels = labels or [f"request {i}" for i in range(len(requests))]
        waiting, tried = deque(range(len(requests))), set()
        answers: dict[int, Any] = {}
        with self._lock:
            for process in self._processes:
                process.job = None  # nobody waits any more for what an interrupted call asked
            while len(answers) < len(requests):
                self._hand_out(name, requests, waiting)
                for job, kind, answer in self._listen():
                    if kind == "failed":
                        raise RuntimeError(f"{labels[job]} ({name}): robosuite:\n{answer}")
                    if kind == "done":
                        answers[job] = answer
                    elif job in tried:
                        raise UserError(f"Two simulators died on {labels[job]} ({name}): {answer}")
                    else:
                        warnings.warn(
                            f"{labels[job]} ({name}) goes to a new simulator: {answer}",
                            RuntimeWarning,
                            stacklevel=2,
                        )
                        tried.add(job)
                        waiting.appendleft(job)
        return [answers[job] for job in range(len(requests))]

    def __enter__(self) -> SimulationPool:
        """Return the pool; it closes with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        self.close()

    def close(self) -> None:
        """End all processes, busy ones too; safe to call twice."""
        self._end_all()

    def _hand_out(self, name: str, requests: Sequence[tuple], waiting: deque[int]) -> None:
        if not self._processes:
            raise RuntimeError("These simulators are closed; make a new pool.")
        for process in self._processes:
            if waiting and not process.busy:
                job = waiting.popleft()
                process.ask((name, requests[job]), self.timeout, job)

    def _listen(self) -> Iterator[tuple[int, str, Any]]:
        """Wait for the next news of a worker; yield (job, "done", "failed" or "died", answer)."""
        busy = [process for process in self._processes if process.busy]
        seconds = min(process.deadline for process in busy) - time.monotonic()
        wait([process.output for process in busy], max(seconds, 0.0))
        for process in busy:
            kind, answer = process.receive()
            if kind == "died":
                self._replace(process, answer)
            elif kind == "failed" and process.starting:
                missing = isinstance(answer, ImportError)
                raise answer if missing else UserError(f"robosuite:\n{answer}")
            if kind != "nothing" and process.job is not None:
                yield process.job, kind, answer

    def _replace(self, process: _Process, why: str) -> None:
        failures = process.failures + 1 if process.starting else 0
        self._processes[process.number] = _Process(self._arguments, process.number, failures)
        if failures >= 2:
            raise UserError(f"No simulator could be started: {why}")


def _close_all(processes: list[_Process], owner: int) -> None:
    """End processes when their pool is closed, or dropped; a fork's copy of it is not theirs."""
    while processes and os.getpid() == owner:
        processes.pop().close()


class _Process:
    """One worker process, its pipes, and what it is busy with."""

    def __init__(self, arguments: tuple[Task, bool], number: int, failures: int = 0) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # One GL thread a worker: the workers are the parallelism.
        threads = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **threads, "MUJOCO_GL": choose_gl(), "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for this process: workers end when their input does
        )
        self.number, self.output = number, self._process.stdout
        self.starting, self.failures = True, failures  # starts that failed just before this one
        self._received = bytearray()
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
        errors = self._process.stderr
        self._reader = threading.Thread(target=self._lines.extend, args=(errors,), daemon=True)
        self._reader.start()
        self.ask(arguments, START_TIMEOUT, None)

    @property
    def busy(self) -> bool:
        return self.deadline is not None

    def ask(self, message: Any, timeout: float, job: int | None) -> None:
        """Send a request; `job` is its place in the current call, None where nobody waits."""
        self.job, self.timeout = job, timeout
        self.deadline: float | None = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it has died, and `receive` will say so
            pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()

    def receive(self) -> tuple[str, Any]:
        """Read what has come, without waiting: ("nothing", None), ("died", why) or the answer."""
        while wait([self.output], 0):
            data = os.read(self.output.fileno(), 1 << 20)
            if not data:
                return "died", self._end()
            self._received += data
            size = 8 + int.from_bytes(self._received[:8], "little")
            if len(self._received) >= size:
                answer = pickle.loads(self._received[8:])
                self._received.clear()
                self.starting = self.starting and answer[0] == "failed"
                self.deadline = None
                return answer
        if time.monotonic() < self.deadline:
            return "nothing", None
        return "died", self._end(late=True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(1.0)
        pipes = [self._process.stdin, self.output]
        if not self._reader.is_alive():  # a grandchild may keep the error stream open
            pipes.append(self._process.stderr)
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _end(self, late: bool = False) -> str:
        """Say how this process ended, or end it, and what it wrote to its error stream last."""
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)  # its output has ended, so it is about to
        self.close()
        code = self._process.returncode
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by signal {-code}, {signal.strsignal(-code)}"
        if code == -signal.SIGKILL:
            how += " (where memory ran out, fewer `workers` need less)"
        if late:
            how = f"did not answer within {self.timeout:g} s"
        lines = b"".join(self._lines).decode(errors="replace").rstrip()
        last = f"; its last lines:\n{lines}" if lines else ""
        return f"worker {self.number} (process {self._process.pid}) {how}{last}"

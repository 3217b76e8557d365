"""The pool: order, errors, deaths, orphans. Its workers here add numbers instead of simulating."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wm_gym.real import pool as module
from wm_gym.real.pool import SimulationPool
from wm_gym.tasks import get_task

FAKE = """
import os, signal, time
from pathlib import Path
from wm_gym.real import worker

class Worker:
    def __init__(self, task, full_meshes):
        self.name = task.name
    def add(self, a, b):
        return a + b
    def nap(self, seconds):
        time.sleep(seconds)
        return seconds
    def nap_and_sign(self, seconds):
        time.sleep(seconds)
        return os.getpid()
    def say(self, text):
        print(text, flush=True)
        os.write(1, text.encode())
        return self.name
    def fail(self):
        raise ValueError("no such joint")
    def die(self):
        os._exit(3)
    def die_once(self, path, answer):
        if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

worker.Worker = Worker
worker.main()
"""
BROKEN = """
from wm_gym.real import worker

class Worker:
    def __init__(self, task, full_meshes):
        raise {error}

worker.Worker = Worker
worker.main()
"""
PARENT = """
import sys, threading, time
from wm_gym.real import pool
from wm_gym.tasks import get_task

pool.COMMAND = sys.argv[1]
simulations = pool.SimulationPool(get_task("Lift"), 2)
pids = [process._process.pid for process in simulations._idle.queue]
threading.Thread(target=simulations.map, args=("nap", [(1.0,)])).start()
while len(simulations._idle.queue) == 2:
    time.sleep(0.01)
print(*pids, flush=True)
time.sleep(100)
"""


@pytest.fixture(scope="module")
def patch():
    """Let new processes run the fake worker, with or without a GL library on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COMMAND", FAKE)
        patch.setenv("MUJOCO_GL", "egl")
        yield patch


@pytest.fixture(scope="module")
def workers(patch):
    with SimulationPool(get_task("Lift"), 2) as workers:
        yield workers


def pids(workers: SimulationPool) -> list[int]:
    return [process._process.pid for process in workers._idle.queue]


def test_answers_come_in_the_order_of_the_requests(workers):
    naps = [(0.2,), (0.0,), (0.1,), (0.0,), (0.05,)]
    assert workers.map("nap", naps) == [0.2, 0.0, 0.1, 0.0, 0.05]


def test_requests_are_spread_over_all_workers(workers):
    assert set(workers.map("nap_and_sign", [(0.3,), (0.3,)])) == set(pids(workers))


def test_no_requests_have_no_answers(workers):
    assert workers.map("add", []) == []


def test_an_error_in_a_worker_is_raised_with_its_traceback_and_costs_no_worker(workers):
    before = sorted(pids(workers))
    with pytest.raises(RuntimeError, match=r"(?s)robosuite:.*in fail.*ValueError: no such joint"):
        workers.map("fail", [()])
    assert workers.map("add", [(1, 2)]) == [3]
    assert sorted(pids(workers)) == before


def test_what_a_worker_prints_does_not_disturb_its_answers(workers):
    assert workers.map("say", [("x" * 5000,)] * 3) == ["Lift"] * 3


def test_a_request_whose_worker_is_killed_is_answered_by_its_successor(workers, tmp_path):
    before = set(pids(workers))
    requests = [(tmp_path / "0", "a"), (tmp_path / "1", "b"), (tmp_path / "2", "c")]
    requests[1][0].touch()  # this one's worker lives
    assert workers.map("die_once", requests) == ["a", "b", "c"]
    assert len(pids(workers)) == 2 and set(pids(workers)) != before


def test_an_idle_worker_that_was_killed_is_replaced(workers):
    victim = workers._idle.queue[0]._process
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert workers.map("add", [(i, i) for i in range(4)]) == [0, 2, 4, 6]
    assert victim.pid not in pids(workers)


def test_a_request_that_kills_two_workers_is_named_and_the_pool_goes_on(workers):
    with pytest.raises(RuntimeError, match=r"died twice on request 0 \(die\).*code 3"):
        workers.map("die", [()])
    assert workers.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]


def test_a_worker_that_does_not_answer_is_given_up_and_the_pool_goes_on(workers, patch):
    with patch.context() as hurry:
        hurry.setattr(module, "CALL_TIMEOUT", 0.1)
        with pytest.raises(RuntimeError, match=r"request 0 \(nap\): no answer within 0 s"):
            workers.map("nap", [(60.0,)])
    assert workers.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]


def test_workers_are_not_in_the_process_group_that_ctrl_c_reaches(workers):
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in pids(workers))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("ImportError('pip install it')", ImportError, "^pip install it$"),
        ("ValueError('no such robot')", RuntimeError, "(?s)robosuite:.*ValueError: no such robot"),
    ],
)
def test_a_simulator_that_cannot_be_built_says_why_and_leaves_no_process(patch, error, kind, text):
    started, popen = [], subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    with patch.context() as broken:
        broken.setattr(module, "COMMAND", BROKEN.format(error=error))
        broken.setattr(module.subprocess, "Popen", start)
        with pytest.raises(kind, match=text):
            SimulationPool(get_task("Lift"), 2)
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_closed_pool_has_no_process_and_refuses_requests(patch):
    workers = SimulationPool(get_task("Lift"), 1)
    process = workers._idle.queue[0]._process
    workers.close()
    workers.close()
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="shutdown"):
        workers.map("add", [(1, 1)])


def test_no_worker_outlives_a_parent_that_is_killed(patch):
    """One worker is idle and one is busy when the parent gets its kill -9."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, FAKE], stdout=subprocess.PIPE, text=True
    )
    orphans = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(orphans) == 2 and all(runs(pid) for pid in orphans)
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while any(runs(pid) for pid in orphans) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in orphans)


def runs(pid: int) -> bool:
    """Say whether a process runs; one that has ended may wait for whoever adopted it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")

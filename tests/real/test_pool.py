"""The pool: order, errors, deaths, orphans. Its workers here add numbers instead of simulating."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wm_gym.errors import UserError
from wm_gym.real import pool as module
from wm_gym.real.pool import SimulationPool
from wm_gym.tasks import get_task

FAKE = """
import ctypes, os, signal, sys, time
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
    def answer_or_fail(self, seconds):
        if seconds is None:
            self.fail()
        return self.nap(seconds)
    def fail(self):
        raise ValueError("no such joint")
    def die(self, words=""):
        print(words, file=sys.stderr)
        os._exit(3)
    def crash(self):
        ctypes.string_at(0)
    def hang(self):
        time.sleep(1000)
    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)
    def answer_by_half(self):
        os.write(3, (1000).to_bytes(8, "little") + b"half")  # 3: the pipe for answers
        time.sleep(1000)
    def run_out_of_memory(self):
        return bytearray(1 << 62)
    def hang_once(self, path, answer):
        if not Path(path).exists():
            Path(path).touch()
            time.sleep(1000)
        return answer
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
import sys
from wm_gym.real import pool
from wm_gym.tasks import get_task

pool.COMMAND = sys.argv[1]
simulations = pool.SimulationPool(get_task("Lift"), 2)
print(*[process._process.pid for process in simulations._processes], flush=True)
simulations.map(sys.argv[2], [()])
"""


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let Ctrl-C interrupt even where a job in the background was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def patch():
    """Let new processes run the fake worker, with or without a GL library on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COMMAND", FAKE)
        patch.setenv("MUJOCO_GL", "egl")
        yield patch


@pytest.mark.parametrize("workers", [0, -1])
def test_a_pool_has_a_worker(workers):
    with pytest.raises(ValueError, match=f"workers must be an integer at least 1, got {workers}"):
        SimulationPool(get_task("Lift"), workers)


@pytest.fixture(scope="module")
def workers(patch):
    with SimulationPool(get_task("Lift"), 2) as workers:
        yield workers


def pids(workers: SimulationPool) -> list[int]:
    return [process._process.pid for process in workers._processes]


def test_answers_come_in_the_order_of_the_requests(workers):
    naps = [(0.2,), (0.0,), (0.1,), (0.0,), (0.05,)]
    assert workers.map("nap", naps) == [0.2, 0.0, 0.1, 0.0, 0.05]


def test_requests_are_spread_over_all_workers(workers):
    assert set(workers.map("nap_and_sign", [(0.3,), (0.3,)])) == set(pids(workers))


def test_no_requests_have_no_answers(workers):
    assert workers.map("add", []) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("fail", "ValueError: no such joint"), ("run_out_of_memory", "MemoryError")],
)
def test_an_error_in_a_worker_is_raised_with_its_traceback_and_costs_no_worker(workers, name, text):
    before = pids(workers)
    with pytest.raises(RuntimeError, match=rf"(?s)row 7 \({name}\): robosuite:.*in {name}.*{text}"):
        workers.map(name, [()], ["row 7"])
    assert workers.map("add", [(1, 2)]) == [3]
    assert pids(workers) == before


def test_what_a_worker_prints_does_not_disturb_its_answers(workers):
    assert workers.map("say", [("x" * 5000,)] * 3) == ["Lift"] * 3


def test_a_request_whose_worker_is_killed_is_answered_by_its_successor(workers, tmp_path):
    before = set(pids(workers))
    requests = [(tmp_path / "0", "a"), (tmp_path / "1", "b"), (tmp_path / "2", "c")]
    requests[1][0].touch()  # this one's worker lives
    with pytest.warns(RuntimeWarning, match=r"signal 9, Killed \(where memory ran out") as warned:
        assert workers.map("die_once", requests, ["row 0", "row 1", "row 5"]) == ["a", "b", "c"]
    rows = sorted(str(warning.message).split(" (die_once)")[0] for warning in warned)
    assert rows == ["row 0", "row 5"]
    assert len(pids(workers)) == 2 and set(pids(workers)) != before


def settle(workers: SimulationPool) -> None:
    """Wait until every worker is idle."""
    while any(process.busy for process in workers._processes):
        list(workers._listen())


def test_an_idle_worker_that_was_killed_is_replaced(workers):
    settle(workers)
    victim = workers._processes[0]._process
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    with pytest.warns(RuntimeWarning, match=rf"worker 0 \(process {victim.pid}\)"):
        assert workers.map("add", [(i, i) for i in range(4)]) == [0, 2, 4, 6]
    assert victim.pid not in pids(workers)


@pytest.mark.filterwarnings("ignore:.*goes to a new simulator")
def test_a_request_that_kills_two_workers_is_named_with_their_last_words(workers):
    words = "\n".join(f"line {i}" for i in range(100))
    with pytest.raises(UserError, match=r"died on row 7 \(die\): worker . .*code 3") as caught:
        workers.map("die", [(words,)], ["row 7"])
    lines = str(caught.value).splitlines()
    assert lines[1:] == [f"line {i}" for i in range(80, 100)]
    assert workers.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*goes to a new simulator")
def test_a_crash_in_native_code_says_where(workers):
    with pytest.raises(RuntimeError, match="(?s)signal 11.*Segmentation fault.* in crash"):
        workers.map("crash", [()])


@pytest.fixture
def impatient(patch):
    with SimulationPool(get_task("Lift"), 2, timeout=1.0) as workers:
        yield workers


@pytest.mark.parametrize("way", ["hang", "stop", "answer_by_half"])
def test_a_worker_that_hangs_is_given_up_in_time_and_the_pool_goes_on(impatient, way):
    before, began = set(pids(impatient)), time.monotonic()
    with (
        pytest.warns(RuntimeWarning, match=rf"row 7 \({way}\) goes to a new simulator: worker "),
        pytest.raises(RuntimeError, match=rf"row 7 \({way}\): .* did not answer within 1 s"),
    ):
        impatient.map(way, [()], ["row 7"])
    assert time.monotonic() - began < 60  # 2 x 1 s and the start of a worker
    impatient.timeout = 100.0
    assert impatient.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]
    assert all(not runs(pid) for pid in before - set(pids(impatient)))


def test_a_request_that_hung_once_is_answered_by_the_next_worker(impatient, tmp_path):
    requests = [(tmp_path / "0", "a"), (tmp_path / "1", "b")]
    requests[1][0].touch()
    with pytest.warns(RuntimeWarning, match=r"request 0 \(hang_once\).* within 1 s"):
        assert impatient.map("hang_once", requests) == ["a", "b"]


def test_answers_to_a_call_that_failed_are_not_taken_for_those_of_the_next(workers):
    settle(workers)
    with pytest.raises(RuntimeError, match="no such joint"):
        workers.map("answer_or_fail", [(0.3,), (None,)])
    # The answer to the first nap comes while the next one is awaited.
    assert workers.map("nap", [(0.8,), (0.0,)]) == [0.8, 0.0]


def test_ctrl_c_interrupts_a_call_and_the_pool_goes_on(workers):
    settle(workers)
    before = pids(workers)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.map("nap", [(2.0,), (2.0,)])
    assert time.monotonic() - began < 1.5
    assert workers.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]
    assert pids(workers) == before


def test_threads_take_turns(workers):
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(workers.map, "add", [(i, 0), (i, 1)]) for i in range(20)]
    assert [call.result() for call in calls] == [[i, i + 1] for i in range(20)]


def test_workers_are_not_in_the_process_group_that_ctrl_c_reaches(workers):
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in pids(workers))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("ImportError('pip install it')", ImportError, "^pip install it$"),
        ("ValueError('no such robot')", UserError, "(?s)robosuite:.*ValueError: no such robot"),
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


def test_simulators_that_die_at_their_start_are_given_up_with_their_last_words(patch):
    with patch.context() as broken:
        broken.setattr(module, "COMMAND", "import sys; sys.exit('no such libEGL')")
        with pytest.raises(UserError, match="(?s)could be started.*code 1.*no such libEGL"):
            SimulationPool(get_task("Lift"), 2)


def test_a_worker_that_is_killed_while_it_starts_is_replaced(workers):
    settle(workers)
    for _ in range(2):  # the second time, the successor is still starting
        workers._processes[0]._process.kill()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert workers.map("add", [(1, 1)]) == [2]
    assert workers.map("add", [(i, 1) for i in range(4)]) == [1, 2, 3, 4]


def test_a_closed_pool_has_no_process_and_refuses_requests(patch):
    workers = SimulationPool(get_task("Lift"), 1)
    process = workers._processes[0]._process
    workers.close()
    workers.close()
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="closed"):
        workers.map("add", [(1, 1)])


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_processes_are_not_copied(workers, copied):
    with pytest.raises(TypeError, match="cannot be copied .* get_state and set_state"):
        copied(workers)


def test_a_pool_that_is_dropped_leaves_no_process(patch):
    workers = SimulationPool(get_task("Lift"), 1)
    process = workers._processes[0]._process
    del workers
    gc.collect()
    assert process.returncode is not None


@pytest.mark.parametrize("way", ["hang", "stop"])
def test_closing_does_not_wait_for_a_worker_that_hangs(patch, way):
    workers = SimulationPool(get_task("Lift"), 2)
    before = pids(workers)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        workers.map(way, [()])
    began = time.monotonic()
    workers.close()
    assert time.monotonic() - began < 5 and not any(runs(pid) for pid in before)


@pytest.mark.parametrize(
    ("blow", "way"),
    [
        (signal.SIGKILL, "hang"),
        (signal.SIGKILL, "stop"),
        (signal.SIGINT, "hang"),
        (signal.SIGTERM, "hang"),
    ],
)
def test_no_worker_outlives_its_parent(patch, blow, way):
    """One worker is idle and one hangs when the parent is ended by kill -9, Ctrl-C or kill."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, FAKE, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    orphans = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(orphans) == 2 and all(runs(pid) for pid in orphans)
    time.sleep(0.3)  # so that one has its request
    parent.send_signal(blow)
    parent.communicate(timeout=20)
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

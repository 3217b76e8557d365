"""Recordings survive what happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from wm_gym.data import EpisodeWriter, load

PRELUDE = """
import os, signal, sys
import numpy as np
import wm_gym.files
from wm_gym.data import Episode, EpisodeWriter

def episode(i):
    frames = np.full((3, 64, 64, 3), i % 256, np.uint8)
    return Episode(frames, np.full((2, 7), i, np.float32), np.zeros(2, bool), start=i)
"""
FOREVER = """
writer = EpisodeWriter(sys.argv[1], {})
while True:
    writer.append(episode(len(writer)))
    print(len(writer), flush=True)
"""
DIE_IN_CLOSE = """
path, moment = sys.argv[1:]
with EpisodeWriter(path, {}) as writer:
    for i in range(3):
        writer.append(episode(i))
    replace = os.replace
    def die(*names):
        if moment == "after the rename":
            replace(*names)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = die
"""


def starts(path) -> list[int]:
    episodes = load(path)
    assert all((e.frames == e.start % 256).all() for e in episodes)
    return [e.start for e in episodes]


def test_kill_9_loses_no_appended_episode(tmp_path, make_episode):
    path, promised = tmp_path / "a.hdf5", 0
    for wait in (0.0, 0.005, 0.02):
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + FOREVER, path], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].split()
        promised = max(promised + 1, int(said[-1]) if said else 0)
        assert not path.exists()
    with EpisodeWriter(path, {}) as writer:
        assert promised <= len(writer) <= promised + 1
        count = len(writer)
    assert starts(path) == list(range(count))
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_kill_9_while_merging_is_mended_by_opening_again(tmp_path, moment):
    path = tmp_path / "a.hdf5"
    done = subprocess.run([sys.executable, "-c", PRELUDE + DIE_IN_CLOSE, path, moment])
    assert done.returncode == -signal.SIGKILL
    with EpisodeWriter(path, {}) as writer:
        assert len(writer) == 3
    assert starts(path) == [0, 1, 2]
    assert [f.name for f in tmp_path.iterdir()] == ["a.hdf5"]


def test_exception_keeps_the_parts_and_names_them(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(path, {}) as writer:
        writer.append(make_episode(start=0))
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="is not finished: 1 episodes wait in .*parts"):
        load(path)
    assert [e.start for e in load(tmp_path / "a.hdf5.parts" / "demo_0.hdf5")] == [0]


def test_finished_recording_can_be_continued(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    for count in (2, 3):
        with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
            while len(writer) < count:
                writer.append(make_episode(start=len(writer)))
    assert [e.start for e in load(path)] == [0, 1, 2]


def test_filter_keys_that_others_added_survive_a_continuation(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    with EpisodeWriter(path, {}) as writer:
        writer.append(make_episode(success=(0,)))
    with h5py.File(path, "a") as file:
        file["mask/valid"] = np.array([b"demo_0"])
    with EpisodeWriter(path, {}) as writer:
        writer.append(make_episode(success=(0,)))
    with h5py.File(path) as file:
        masks = {key: names[:].tolist() for key, names in file["mask"].items()}
    assert masks.pop("valid") == [b"demo_0"]
    assert masks.pop("success") == [b"demo_0", b"demo_1"] and len(masks) == 1


def test_a_foreign_file_keeps_its_successes_when_it_is_continued(tmp_path, make_episode):
    """Its episodes do not say whether they succeeded, nor how long they are: its mask does."""
    path = tmp_path / "a.hdf5"
    with EpisodeWriter(path, {}) as writer:
        for success in ((0,), ()):
            writer.append(make_episode(t=3, success=success))
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo.attrs["wm_success"], demo.attrs["num_samples"]
    with EpisodeWriter(path, {}) as writer:
        writer.append(make_episode(t=2, success=(0,)))
    with h5py.File(path) as file:
        assert file["mask/success"][:].tolist() == [b"demo_0", b"demo_2"]
        assert file["data"].attrs["total"] == 3 + 3 + 2


def test_a_file_that_lacks_an_episode_is_not_continued(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    with EpisodeWriter(path, {}) as writer:
        for _ in range(3):
            writer.append(make_episode())
    with h5py.File(path, "a") as file:
        del file["data/demo_1"]
    with pytest.raises(ValueError, match="without gaps .* found 2 episodes from demo_0 to demo_2"):
        EpisodeWriter(path, {})


def test_finished_recording_is_left_alone_when_nothing_is_added(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    with EpisodeWriter(path, {}) as writer:
        writer.append(make_episode())
    before = os.stat(path)
    with EpisodeWriter(path, {}) as writer:
        assert len(writer) == 1
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns


def test_other_settings_do_not_mix(tmp_path, make_episode):
    path = tmp_path / "a.hdf5"
    with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
        writer.append(make_episode())
    with pytest.raises(ValueError, match="recorded with env_args .*Lift.*, not .*Stack"):
        EpisodeWriter(path, {"env_name": "Stack"})


def test_a_file_has_one_writer_at_a_time(tmp_path, make_episode):
    path = tmp_path / "demos.hdf5"
    first, second = EpisodeWriter(path, {}), EpisodeWriter(path, {})
    first.append(make_episode(0))
    with pytest.raises(ValueError, match=r"demo_0\.hdf5 is there already: another writer"):
        second.append(make_episode(1))
    first.close()
    with pytest.raises(ValueError, match="is closed; open another to go on"):
        first.append(make_episode(1))
    assert len(load(path)) == 1


@pytest.mark.parametrize("source", ["", "me/you", "success"])
def test_a_source_that_cannot_be_a_filter_key_is_refused(tmp_path, make_episode, source):
    writer = EpisodeWriter(tmp_path / "demos.hdf5", {})
    with pytest.raises(ValueError, match="source is the name of a filter key"):
        writer.append(make_episode(0, source=source))
    assert len(writer) == 0 and not writer.parts.exists()


def test_gap_in_the_parts_is_refused(tmp_path, make_episode):
    writer = EpisodeWriter(tmp_path / "a.hdf5", {})
    for _ in range(3):
        writer.append(make_episode())
    (writer.parts / "demo_1.hdf5").unlink()
    with pytest.raises(ValueError, match=r"without gaps; found \[0, 2\]"):
        EpisodeWriter(tmp_path / "a.hdf5", {})

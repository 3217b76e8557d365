"""Files that are whole or not there."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from wm_gym.files import replacing


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_success_replaces_and_makes_folders(tmp_path):
    with replacing(tmp_path / "sub" / "a.txt") as aside:
        aside.write_text("new")
        assert aside.suffix == ".txt"
    assert [f.name for f in (tmp_path / "sub").iterdir()] == ["a.txt"]


def write_while_told(path: Path, go_on, writing) -> None:
    with replacing(path) as aside:
        aside.write_text("theirs")
        writing.set()
        go_on.wait(60)


def test_another_process_may_write_the_same_file(tmp_path):
    spawn, path = multiprocessing.get_context("spawn"), tmp_path / "a.txt"
    go_on, writing = spawn.Event(), spawn.Event()
    other = spawn.Process(target=write_while_told, args=(path, go_on, writing))
    other.start()
    assert writing.wait(60)
    with replacing(path) as aside:
        aside.write_text("ours")
    assert path.read_text() == "ours"
    go_on.set()
    other.join()
    assert other.exitcode == 0 and path.read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1

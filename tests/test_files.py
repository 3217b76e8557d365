"""Files that are whole or not there."""

from __future__ import annotations

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

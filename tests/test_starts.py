"""Starts on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import fake_pool
from wm_gym.starts import StartPool, load_starts, save_starts


def splits() -> list[StartPool]:
    """Make three disjoint splits of 5, 2 and 3 starts."""
    pools = []
    for offset, (name, size) in enumerate({"train": 5, "validation": 2, "test": 3}.items()):
        made = fake_pool(size, split=name)
        pools.append(StartPool(made.frames + 10 * offset, made.states + 10 * offset, "Lift", name))
    return pools


def test_what_is_saved_is_loaded(tmp_path):
    save_starts(splits(), tmp_path)
    for pool in splits():
        loaded = load_starts("Lift", pool.split, tmp_path)
        assert len(loaded) == len(pool) and loaded.split == pool.split
        assert np.array_equal(loaded.frames, pool.frames)
        assert np.array_equal(loaded.states, pool.states)
        assert loaded.low_dim == {}


def test_measurements_are_kept_by_split(tmp_path):
    pools = [
        replace(pool, low_dim={"hand": np.full((len(pool), 2), number, np.float32)})
        for number, pool in enumerate(splits())
    ]
    save_starts(pools, tmp_path)
    for number, pool in enumerate(pools):
        loaded = load_starts("Lift", pool.split, tmp_path)
        assert list(loaded.low_dim) == ["hand"]
        assert loaded.low_dim["hand"].tolist() == [[number] * 2] * len(pool)


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 1)), np.zeros((3, 1), np.float32), np.zeros(2, np.float32)]
)
def test_measurements_of_other_shapes_or_dtypes_are_refused(rows):
    pool = fake_pool(2)
    with pytest.raises(ValueError, match=r"measurements 'hand' must be float32 \(2, d\)"):
        replace(pool, low_dim={"hand": rows})


def test_only_the_file_is_left_behind(tmp_path):
    assert save_starts(splits(), tmp_path / "new") == tmp_path / "new" / "starts.npz"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["starts.npz"]


def test_splits_that_share_a_state_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 of 7 starts repeat"):
        save_starts([fake_pool(5), fake_pool(2, split="test")], tmp_path)


def test_a_split_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="distinct splits"):
        save_starts([fake_pool(5), fake_pool(5)], tmp_path)


def test_moments_of_episodes_are_not_saved_as_starts(tmp_path):
    pool = fake_pool(2)
    unknown = replace(pool, states=np.array([[0.0], [np.nan]]))
    later = replace(pool, past=np.zeros((2, 3, 8, 8, 3), np.uint8))
    for moments in (unknown, later):
        with pytest.raises(ValueError, match="without a past, got moments.*save_moments"):
            save_starts([moments], tmp_path)
    assert not (tmp_path / "starts.npz").exists()


def test_unknown_splits_and_tasks_are_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        load_starts("Lift", "dev", tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'Lift'"):
        load_starts("Lfit", "train", tmp_path)


def test_a_missing_file_says_where_and_how_to_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_starts"):
        load_starts("Lift", "train", tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    path = save_starts(splits(), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"starts\.npz does not hold the train starts"):
        load_starts("Lift", "train", tmp_path)


def test_a_foreign_file_is_named(tmp_path):
    np.savez(tmp_path / "starts.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match="train_frames"):
        load_starts("Lift", "train", tmp_path)


@pytest.mark.parametrize(
    ("frames", "states"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 1))),
        (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1))),
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 1))),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 1))),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1), np.float32)),
    ],
)
def test_pools_of_other_shapes_or_dtypes_are_refused(frames, states):
    with pytest.raises(ValueError, match="Start (frames|states) must be"):
        StartPool(frames, states, "Lift", "train")

"""Reading robomimic files: ours, foreign ones and damaged ones."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from wm_gym.data import Episode, EpisodeFile, EpisodeWriter, load


@pytest.fixture
def recorded(tmp_path, make_episode) -> Path:
    path = tmp_path / "demos.hdf5"
    with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
        writer.append(make_episode(0, t=3, success=(1, 2), source="play", start=7, seed=5))
        writer.append(
            make_episode(1, t=2, states=np.arange(6.0).reshape(3, 2), model_file="<xml/>")
        )
    return path


def foreign(path: Path, **datasets: np.ndarray) -> Path:
    """A file as robomimic writes it: three steps, float64 actions, sparse rewards."""
    demo = {
        "actions": np.full((3, 7), 0.5),
        "rewards": np.array([0.0, 0.0, 1.0]),
        "obs/agentview_image": np.arange(3, dtype=np.uint8).repeat(48).reshape(3, 4, 4, 3),
    } | datasets
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        for key, value in demo.items():
            group[key] = value
        group.attrs["num_samples"] = 3
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Stack"})
    return path


def test_episode_comes_back_as_it_went(recorded, make_episode):
    first, second = load(recorded)
    want = make_episode(0, t=3)
    assert np.array_equal(first.frames, want.frames) and first.frames.dtype == np.uint8
    assert np.array_equal(first.actions, want.actions) and first.actions.dtype == np.float32
    assert first.success.tolist() == [False, True, True] and first.first_success == 1
    assert (first.source, first.start, first.seed, first.model_file) == ("play", 7, 5, None)
    assert second.states.tolist() == [[0, 1], [2, 3], [4, 5]] and second.model_file == "<xml/>"
    assert not second.succeeded and second.first_success is None


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"robots": "Panda"}, "Panda"),
        ({"robots": ["Sawyer"]}, "Sawyer"),
        ({"robots": ["Panda", "IIWA"]}, "Panda, IIWA"),
        ({}, ""),
        (None, ""),
    ],
)
def test_an_episode_says_which_robot_moved(tmp_path, make_episode, kwargs, name):
    with EpisodeWriter(tmp_path / "a.hdf5", {"env_kwargs": kwargs}) as writer:
        writer.append(make_episode(0, t=2))
    assert load(tmp_path / "a.hdf5")[0].robot == name


def test_low_dim_observations_come_back_as_they_went(tmp_path, make_episode):
    hand = np.arange(9, dtype=np.float32).reshape(3, 3)
    with EpisodeWriter(tmp_path / "a.hdf5", {}) as writer:
        writer.append(make_episode(0, t=2, low_dim={"robot0_eef_pos": hand}))
    (episode,) = load(tmp_path / "a.hdf5")
    assert list(episode.low_dim) == ["robot0_eef_pos"]
    assert np.array_equal(episode.low_dim["robot0_eef_pos"], hand)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data/demo_0/obs/robot0_eef_pos"].shape == (2, 3)


def test_foreign_low_dim_observations_become_float32(tmp_path):
    path = foreign(tmp_path / "a.hdf5", **{"obs/object": np.eye(3), "obs/count": np.arange(3)})
    (episode,) = load(path)  # no picture after the last action: two transitions
    assert list(episode.low_dim) == ["object"]
    assert episode.low_dim["object"].dtype == np.float32
    assert episode.low_dim["object"].tolist() == np.eye(3).tolist()


def test_low_dim_observations_of_another_length_are_refused(make_episode):
    with pytest.raises(ValueError, match=r"low_dim\['object'\] must be float32 \(3, 1\).*\(2, 1\)"):
        make_episode(0, t=2, low_dim={"object": np.zeros((2, 1), np.float32)})


def test_layout_is_what_robomimic_reads(recorded):
    with h5py.File(recorded) as file:
        demo = file["data/demo_0"]
        assert demo["obs/agentview_image"].shape == (3, 4, 4, 3)
        assert demo["obs/agentview_image"].chunks == (1, 4, 4, 3)
        assert demo["rewards"][:].tolist() == [0, 1, 1] and demo["dones"][:].tolist() == [0, 1, 1]
        assert demo.attrs["num_samples"] == 3 and demo.attrs["wm_success"]
        assert file["data"].attrs["total"] == 5
        assert json.loads(file["data"].attrs["env_args"]) == {"env_name": "Lift"}
        assert file["mask/play"][:].tolist() == file["mask/success"][:].tolist() == [b"demo_0"]
        assert file["mask/demonstrations"][:].tolist() == [b"demo_1"]


def test_frames_read_a_window_across_the_last_frame(recorded):
    with EpisodeFile(recorded) as file:
        assert file.frames(0, 1, 3)[:, 0, 0, 0].tolist() == [1, 2]
        assert file.frames(0, 2, 4)[:, 0, 0, 0].tolist() == [2, 3]
        assert file.frames(1, 2, 3)[:, 0, 0, 0].tolist() == [12]
        with pytest.raises(ValueError, match="frames 0 to 3; cannot read .2, 5"):
            file.frames(0, 2, 5)


def test_filter_key_picks_demos(recorded):
    assert EpisodeFile(recorded, filter_key="demonstrations").names == ["demo_1"]
    with pytest.raises(ValueError, match="no filter key 'train'; has .'demonstrations', 'play'"):
        EpisodeFile(recorded, filter_key="train")


def test_a_file_without_observations_has_none(tmp_path):
    path = foreign(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs"]
    (episode,) = load(path, pictures=False)
    assert episode.low_dim == {}


def test_foreign_file_without_next_obs_has_one_transition_less(tmp_path):
    (episode,) = load(foreign(tmp_path / "a.hdf5"))
    assert len(episode) == 2 and episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert episode.success.tolist() == [False, True]  # the third's: it stopped at its success
    assert episode.source == "demonstrations" and episode.start == -1 and episode.states is None


def test_a_foreign_success_before_the_last_action_stays_where_it_was(tmp_path):
    (episode,) = load(foreign(tmp_path / "a.hdf5", rewards=np.array([1.0, 0.0, 0.0])))
    assert episode.success.tolist() == [True, False]


@pytest.mark.parametrize("told", ["null", "[1]", '{"env_kwargs": "Panda"}'])
def test_env_args_that_are_no_object_are_refused(tmp_path, told):
    path = foreign(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = told
    with pytest.raises(ValueError, match=r"a\.hdf5: .*'env_\w+'\] must be a JSON object"):
        load(path)


def test_foreign_file_with_next_obs_keeps_its_last_transition(tmp_path):
    after = np.arange(1, 4, dtype=np.uint8).repeat(48).reshape(3, 4, 4, 3)
    (episode,) = load(foreign(tmp_path / "a.hdf5", **{"next_obs/agentview_image": after}))
    assert len(episode) == 3 and episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert episode.success.tolist() == [False, False, True]


def test_a_last_action_whose_state_is_not_told_is_left_out(tmp_path):
    """As robomimic converts: it adds next_obs, but no next state."""
    seen = {"next_obs/agentview_image": np.zeros((3, 4, 4, 3), np.uint8), "states": np.eye(3)}
    path = foreign(tmp_path / "a.hdf5", **seen)
    (episode,) = load(path)
    assert len(episode) == 2 and episode.states.tolist() == np.eye(3).tolist()
    assert episode.success.tolist() == [False, True]
    (unfilmed,) = load(path, pictures=False)
    assert len(unfilmed) == 2 and unfilmed.states.tolist() == np.eye(3).tolist()
    (all_told,) = load(foreign(tmp_path / "b.hdf5", **seen | {"states": np.eye(4)}))
    assert len(all_told) == 3 and all_told.states.shape == (4, 4)


def test_demos_are_sorted_by_number(tmp_path, make_episode):
    with EpisodeWriter(tmp_path / "a.hdf5", {}) as writer:
        for i in range(11):
            writer.append(make_episode(i, t=1))
    assert [int(e.frames[0, 0, 0, 0]) for e in load(tmp_path / "a.hdf5")] == list(range(0, 110, 10))


def test_truncated_file_is_named_with_its_mend(recorded):
    recorded.write_bytes(recorded.read_bytes()[:-500])
    with pytest.raises(OSError, match=r"demos.hdf5 is not a whole HDF5 file .*record it again"):
        load(recorded)


def test_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "a.hdf5").write_text("not HDF5")
    with pytest.raises(OSError, match=r"a.hdf5 is not a whole HDF5 file"):
        load(tmp_path / "a.hdf5")


def test_hdf5_of_another_schema_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"a.hdf5: expected robomimic.*found \['observations'\]"):
        load(tmp_path / "a.hdf5")


def test_robosuite_demonstrations_without_pictures_are_refused(tmp_path):
    path = foreign(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs"]
    with pytest.raises(ValueError, match="demo_0: expected actions and obs/agentview_image"):
        load(path)


def test_bad_episode_is_skipped_only_when_asked(recorded):
    with h5py.File(recorded, "a") as file:
        file["data/demo_0"].attrs["num_samples"] = 9
    with pytest.raises(ValueError, match="1 bad episode.*3 pictures, 3 actions, num_samples 9"):
        load(recorded)
    with pytest.warns(UserWarning, match="left out demo_0"):
        assert len(load(recorded, skip_bad=True)) == 1


def test_the_rest_of_a_file_is_kept_after_an_episode_that_cannot_be_built(recorded):
    with h5py.File(recorded, "a") as file:
        del file["data/demo_0/obs/agentview_image"], file["data/demo_0/wm_final/agentview_image"]
        file["data/demo_0/obs/agentview_image"] = np.zeros((3, 4, 4, 3), np.uint8)
        file["data/demo_0/wm_final/agentview_image"] = np.zeros((2, 4, 4, 3), np.uint8)
    named = r"demos\.hdf5: demo_0: Episode.frames must be uint8 \(4, 4, 4, 3\).*\(5, 4, 4, 3\)"
    with pytest.raises(ValueError, match=named):
        load(recorded)
    with pytest.warns(UserWarning, match=f"Left out .*{named}"):
        (kept,) = load(recorded, skip_bad=True)
    assert kept.frames[:, 0, 0, 0].tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("rewards", "came"), [([0.1, 0.4, 1.0], "0.1 to 1"), ([0.0, 2.0, 0.0], "0 to 2")]
)
def test_rewards_other_than_0_and_1_are_refused(tmp_path, rewards, came):
    path = foreign(tmp_path / "a.hdf5", rewards=np.array(rewards))
    with pytest.raises(ValueError, match=rf"a\.hdf5: demo_0: Rewards go from {came}.*--shaped"):
        load(path)


def test_a_file_of_shaped_rewards_is_refused(tmp_path):
    path = foreign(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"reward_shaping": True}})
    with pytest.raises(ValueError, match=r"a\.hdf5: env_args say reward_shaping.*0 and 1"):
        load(path)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"reward_shaping": False}})
    assert len(load(path)) == 1


def test_skip_bad_lists_unreadable_files(recorded, tmp_path):
    (tmp_path / "bad.hdf5").write_bytes(b"")
    with pytest.warns(UserWarning, match="Left out .*bad.hdf5"):
        assert len(load([tmp_path / "bad.hdf5", recorded], skip_bad=True)) == 2


def test_missing_file_is_never_skipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.hdf5 does not exist"):
        load(tmp_path / "no.hdf5", skip_bad=True)


def test_open_reader_crosses_a_fork_and_a_pickle(recorded):
    file = EpisodeFile(recorded)
    file.frames(0, 0, 1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_last_pixel, (file,)) == 3
    assert pickle.loads(pickle.dumps(file)).frames(0, 3, 4).max() == 3
    assert file.frames(0, 3, 4).max() == 3


def _last_pixel(file: EpisodeFile) -> int:
    return int(file.frames(0, 3, 4).max())


@pytest.mark.parametrize("names", [("episode_2", "episode_10"), ("demo2", "demo10")])
def test_episodes_may_have_other_names(tmp_path, names):
    path = foreign(tmp_path / "named.hdf5")
    with h5py.File(path, "a") as file:
        for name in reversed(names):
            file.copy("data/demo_0", file["data"], name)
        del file["data/demo_0"]
    with EpisodeFile(path) as file:
        assert file.names == list(names)


def test_pictures_may_have_another_name_and_the_error_says_which_there_are(tmp_path):
    path = foreign(tmp_path / "front.hdf5")
    with h5py.File(path, "a") as file:
        file.move("data/demo_0/obs/agentview_image", "data/demo_0/obs/front_image")
    with pytest.raises(ValueError, match=r"in obs, \['front_image'\] \(.*image_key="):
        load(path)
    assert len(load(path, image_key="front_image")[0]) == 2


def test_what_was_not_recorded_after_the_last_action_is_left_out_with_a_warning(tmp_path):
    last = np.full((3, 4, 4, 3), 9, np.uint8)
    seen = {"next_obs/agentview_image": last, "next_obs/grip": np.ones(3)}
    path = foreign(
        tmp_path / "a.hdf5", **seen, **{"obs/grip": np.zeros(3), "obs/object": np.zeros((3, 7))}
    )
    with pytest.warns(UserWarning, match=r"left out obs/object, .* add it to next_obs"):
        (episode,) = load(path)
    assert {key: rows.tolist() for key, rows in episode.low_dim.items()} == {
        "grip": [[0], [0], [0], [1]]
    }


def test_what_is_no_measurement_is_passed_over(tmp_path):
    others = {"obs/camera/K": np.eye(3), "obs/depth": np.zeros((3, 4, 4)), "obs/x": np.ones(3)}
    (episode,) = load(foreign(tmp_path / "a.hdf5", **others))
    assert set(episode.low_dim) == {"x"}


def test_too_few_rewards_are_refused_and_none_are_failures_with_a_warning(tmp_path):
    for few in (np.zeros(0), np.zeros(1), np.zeros((3, 1))):
        path = foreign(tmp_path / "few.hdf5", rewards=few)
        with pytest.raises(ValueError, match=r"few.hdf5: demo_0: Expected 2 rewards"):
            load(path)
        with pytest.warns(UserWarning, match="Left out .*Expected 2 rewards"):
            assert load(path, skip_bad=True) == []
    with h5py.File(path, "a") as file:
        del file["data/demo_0/rewards"]
    with pytest.warns(UserWarning, match="holds no rewards: all counts as failed"):
        assert not load(path)[0].succeeded


def test_a_recording_that_was_to_go_on_is_read_with_a_warning(recorded, make_episode):
    parts = recorded.with_name("demos.hdf5.parts")
    with EpisodeWriter(recorded, {"env_name": "Lift"}) as writer:
        writer.append(make_episode(2, t=2))
        kept = (parts / "demo_2.hdf5").read_bytes()
    parts.mkdir()
    (parts / "demo_2.hdf5").write_bytes(kept)
    assert len(load(recorded)) == 3  # it was merged, and waits no more
    (parts / "demo_3.hdf5").write_bytes(kept)
    with pytest.warns(UserWarning, match=r"not finished: 1 episodes wait in .*parts"):
        assert len(load(recorded)) == 3


def test_episode_arrays_must_agree(make_episode):
    good = make_episode(0, t=3)
    with pytest.raises(ValueError, match=r"frames must be uint8 \(4, 4, 4, 3\) for 3 actions"):
        Episode(good.frames[:-1], good.actions, good.success)
    with pytest.raises(ValueError, match="actions must be float32"):
        Episode(good.frames, good.actions.astype(np.float64), good.success)
    with pytest.raises(ValueError, match="at least one action"):
        Episode(good.frames[:1], good.actions[:0], good.success[:0])

"""Recording: the cut after a success, resuming, and real episodes in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import ScriptedEnv, fake_pool
from wm_gym.data import EpisodeFile, EpisodeWriter, collection, load
from wm_gym.data.collection import TAIL, draw_starts, environment, record_expert, record_policy
from wm_gym.real import vector
from wm_gym.real.expert import DEMONSTRATION
from wm_gym.real.vector import RealVectorEnv
from wm_gym.real.worker import Recording
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task

TASK = replace(get_task("Lift"), horizon=5)
NEVER = 99


class FakePool:
    """Answers the workers' requests; an episode is filled with its start and its seed."""

    workers = 1

    def __init__(self) -> None:
        self.calls: list[int] = []  # requests in each

    def map(self, name, requests):
        self.calls.append(len(requests))
        return [getattr(self, name)(*request) for request in requests]

    def sample_start(self, seed):
        low_dim = {"robot0_hand": np.float32([seed, 1]), "object": np.float32([2])}
        return np.array([seed, 0.5]), np.full((4, 4, 3), seed % 251, np.uint8), low_dim

    def demonstrate(self, state, expert, seed, steps, tail, filmed):
        assert expert is DEMONSTRATION and tail == TAIL
        fill, side = np.arange(steps + 1) + 10 * state[0], 4 if filmed else 0
        return Recording(
            np.broadcast_to(fill[:, None, None, None], (steps + 1, side, side, 3)).astype(np.uint8),
            np.full((steps, 7), seed, np.float32),
            np.arange(steps) == state[0],
            fill[:, None].astype(np.float64),
            {"fill": fill[:, None].astype(np.float32)},
        )


def expert(path, pool, indices, starts=None, seed=3, task=TASK):
    starts = starts or fake_pool(size=20)
    record_expert(path, task, starts, indices, DEMONSTRATION, source="play", seed=seed, pool=pool)


def unfilmed(path, indices) -> None:
    told = {"source": "unfilmed", "seed": 3, "pool": FakePool(), "filmed": False}
    record_expert(path, TASK, fake_pool(size=20), indices, DEMONSTRATION, **told)


def content(path) -> list[tuple]:
    """Everything in a recording that can be compared."""
    return [
        (
            *(part if part is None else part.tolist() for part in (e.frames, e.actions)),
            e.success.tolist(),
            None if e.states is None else e.states.tolist(),
            (e.source, e.start, e.seed, e.model_file),
        )
        for e in load(path)
    ]


def test_what_nobody_filmed_is_recorded_without_pictures_and_goes_on(tmp_path):
    path = tmp_path / "a.hdf5"
    unfilmed(path, [1])
    unfilmed(path, [1, 2])
    with EpisodeFile(path, pictures=False) as file:
        assert not file.filmed and file.lengths == [5, 5]
    found = load(path, pictures=False)
    assert [e.frames.shape for e in found] == [(6, 0, 0, 3)] * 2
    assert [e.low_dim["fill"][:, 0].tolist() for e in found] == [[*range(10, 16)], [*range(20, 26)]]
    assert [(e.source, e.start) for e in found] == [("unfilmed", 1), ("unfilmed", 2)]
    with pytest.raises(ValueError, match="expected actions and obs/agentview_image"):
        load(path)


def test_pictures_may_be_left_where_they_are(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [1])
    with EpisodeFile(tmp_path / "a.hdf5", pictures=False) as file:
        (found,) = file.episodes()
        assert file.filmed and found.frames.shape == (6, 0, 0, 3)
    assert found.actions.tolist() == load(tmp_path / "a.hdf5")[0].actions.tolist()


def test_starts_of_a_split_are_drawn_from_its_own_seeds():
    pool = FakePool()
    train, test = (draw_starts(TASK, split, 6, pool) for split in ("train", "test"))
    assert train.states[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert test.states[:, 0].tolist() == [5_000_000 + i for i in range(6)]
    assert train.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (train.task, train.split, len(train), test.split) == ("Lift", "train", 6, "test")
    assert list(test.low_dim) == ["robot0_hand"]  # not where the object is
    assert test.low_dim["robot0_hand"].tolist() == [[5_000_000 + i, 1] for i in range(6)]
    assert pool.calls == [4, 2, 4, 2]


def test_the_expert_plays_each_index_once_in_order(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [2, 0, 2])
    episodes = load(tmp_path / "a.hdf5")
    assert [e.start for e in episodes] == [2, 0, 2]
    assert [e.frames[:, 0, 0, 0].tolist() for e in episodes[:2]] == [
        [20, 21, 22, 23, 24, 25],
        [0, 1, 2, 3, 4, 5],
    ]
    assert [e.first_success for e in episodes] == [2, 0, 2]
    assert {(e.source, e.seed) for e in episodes} == {("play", 3)}
    assert all(e.states.shape == (6, 1) for e in episodes)


def test_every_episode_has_randomness_of_its_own(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [1, 1, 1])
    expert(tmp_path / "b.hdf5", FakePool(), [1, 1, 1], seed=4)
    seeds = [e.actions[0, 0] for name in "ab" for e in load(tmp_path / f"{name}.hdf5")]
    assert len(set(seeds)) == 6


def stop_after(monkeypatch, count: int) -> None:
    """Let the next recordings be interrupted when `count` episodes are there."""
    append = EpisodeWriter.append

    def interrupted(self, episode):
        if len(self) == count:
            raise KeyboardInterrupt
        append(self, episode)

    monkeypatch.setattr(collection.EpisodeWriter, "append", interrupted)


@pytest.mark.parametrize("after", [0, 3, 4, 9])
def test_an_interrupted_recording_of_the_expert_goes_on_to_the_same_content(
    tmp_path, monkeypatch, after
):
    indices = [7, 1, 4, 4, 0, 9, 2, 3, 8, 5]
    expert(tmp_path / "whole.hdf5", FakePool(), indices)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, after)
        expert(tmp_path / "broken.hdf5", FakePool(), indices)
    pool = FakePool()
    expert(tmp_path / "broken.hdf5", pool, indices)
    assert sum(pool.calls) == 10 - after
    assert content(tmp_path / "broken.hdf5") == content(tmp_path / "whole.hdf5")


@pytest.mark.parametrize(
    ("after", "indices", "seed"), [(2, [7, 1, 4], 4), (2, [7, 2, 4], 3), (3, [7, 1, 6], 3)]
)
def test_a_recording_does_not_go_on_as_another(tmp_path, monkeypatch, after, indices, seed):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, after)
        expert(tmp_path / "a.hdf5", FakePool(), [7, 1, 5, 6])
    pool, wanted = FakePool(), f"'play', {seed}, {indices[after - 1]}, 5"
    told = rf"Episode {after - 1} in .* not \({wanted}\)"
    with pytest.raises(ValueError, match=told):
        expert(tmp_path / "a.hdf5", pool, indices, seed=seed)
    assert pool.calls == []


def test_a_finished_recording_is_not_played_again(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [1, 2])
    pool = FakePool()
    expert(tmp_path / "a.hdf5", pool, [1, 2])
    assert pool.calls == []


def test_of_a_longer_recording_the_first_episodes_may_be_asked_for(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [1, 2, 4])
    pool = FakePool()
    expert(tmp_path / "a.hdf5", pool, [1, 2])
    assert pool.calls == [] and [e.start for e in load(tmp_path / "a.hdf5")] == [1, 2, 4]
    with pytest.raises(ValueError, match=r"Episode 1 .* \('play', 3, 2, 5\), not .* 3, 4, 5\)"):
        expert(tmp_path / "a.hdf5", pool, [1, 4])


def test_a_recording_does_not_go_on_with_episodes_of_another_length(tmp_path):
    expert(tmp_path / "a.hdf5", FakePool(), [1])
    longer, pool = replace(DEMONSTRATION, length=9), FakePool()
    with pytest.raises(ValueError, match=r"\('play', 3, 1, 5\), not \('play', 3, 1, 9\)"):
        record_expert(
            tmp_path / "a.hdf5",
            TASK,
            fake_pool(),
            [1, 2],
            longer,
            source="play",
            seed=3,
            pool=pool,
        )
    assert pool.calls == []


# A policy's own rollouts: ScriptedEnv shows (row, episode, elapsed) and row i succeeds at wins[i].


def scripted(wins: list[int], **options) -> ScriptedEnv:
    options = {
        "chunk": 4,
        "horizon": TASK.horizon + TAIL,
        "ignore_terminations": True,
        "return_frames": True,
        "autoreset_mode": "Disabled",
        "starts": fake_pool(size=20),
    } | options
    return ScriptedEnv(wins, **options)


class Counting:
    """A policy whose t-th action of an episode is t / 10 everywhere, from 0.0 on."""

    def __init__(self, env: ScriptedEnv) -> None:
        self.env = env

    def __call__(self, obs, instructions):
        assert instructions == ["lift the red cube"] * self.env.num_envs
        assert np.array_equal(obs["image"][:, 0, 0, 2], self.env.elapsed)
        clock = self.env.elapsed[:, None] + np.arange(self.env.chunk)
        return np.repeat(clock[..., None] / 10, 7, axis=-1)


def rollouts(path, env, indices, task=TASK):
    record(path, env, indices, lambda first: Counting(env), task)
    return load(path)


def record(path, env, indices, player, task=TASK):
    record_policy(path, task, env, player, indices, source="rollouts", seed=1)


def test_a_policys_episode_is_cut_a_tail_after_its_success_or_at_the_horizon(tmp_path):
    episodes = rollouts(tmp_path / "a.hdf5", scripted([2, NEVER, 5, 6]), [3, 1, 0, 2])
    assert [len(e) for e in episodes] == [2 + TAIL, 5, 5 + TAIL, 5]
    assert [e.first_success for e in episodes] == [1, None, 4, None]  # 6 is past the horizon
    assert [int(e.success.sum()) for e in episodes] == [1, 0, 1, 0]


def test_a_policys_frames_and_actions_belong_together(tmp_path):
    short = rollouts(tmp_path / "a.hdf5", scripted([NEVER]), [3])[0]
    assert short.frames[:, 0, 0, 2].tolist() == [0, 1, 2, 3, 4, 5]
    assert short.actions[:, 6] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert (short.source, short.start, short.seed) == ("rollouts", 3, 1)
    assert short.states[:, 0].tolist() == short.low_dim["clock"][:, 0].tolist()
    assert short.states[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_actions_are_recorded_as_they_were_played(tmp_path):
    episode = rollouts(tmp_path / "a.hdf5", scripted([5]), [0])[0]
    assert episode.actions[9:12, 0] == pytest.approx([0.9, 1.0, 1.0])  # 1.1 was clipped


def test_waves_play_every_index_once_also_when_the_last_one_is_not_full(tmp_path):
    env = scripted([2, NEVER])
    episodes = rollouts(tmp_path / "a.hdf5", env, [3, 1, 4, 0, 2])
    assert [e.start for e in episodes] == [3, 1, 4, 0, 2]
    assert [e.succeeded for e in episodes] == [True, False, True, False, True]
    assert [start for _, start in env.begun] == [3, 1, 4, 0, 2, 2]


def drawn(first: int):
    """Act at random, as a function of the wave."""
    rng = np.random.default_rng(first)
    return lambda obs, instructions: rng.uniform(-1, 1, (2, 4, 7))


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_an_interrupted_recording_of_a_policy_goes_on_to_the_same_content(
    tmp_path, monkeypatch, after
):
    indices = [3, 1, 4, 0, 2]
    record(tmp_path / "whole.hdf5", scripted([2, 2]), indices, drawn)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, after)
        record(tmp_path / "broken.hdf5", scripted([2, 2]), indices, drawn)
    env = scripted([2, 2])
    record(tmp_path / "broken.hdf5", env, indices, drawn)
    whole = load(tmp_path / "whole.hdf5")
    for one, other in zip(load(tmp_path / "broken.hdf5"), whole, strict=True):
        assert one.start == other.start and np.array_equal(one.actions, other.actions)
    # From the first episode of the wave that was interrupted on; the last wave is filled up.
    assert [start for _, start in env.begun] == [3, 1, 4, 0, 2, 2][after - after % 2 :]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("horizon", TASK.horizon),
        ("return_frames", False),
        ("ignore_terminations", False),
        ("autoreset_mode", "SameStep"),
        ("chunk", None),
    ],
)
def test_an_environment_that_cannot_record_is_refused(tmp_path, option, value):
    named = "action shape" if option == "chunk" else option
    with pytest.raises(ValueError, match=f"Recording needs .*chunk=K.* got .*{named}"):
        rollouts(tmp_path / "a.hdf5", scripted([2], **{option: value}), [0])
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_described_as_robomimic_does():
    facts = environment(get_task("Lift"))
    assert (facts["env_name"], facts["type"]) == ("Lift", 1)
    assert facts["env_kwargs"]["camera_heights"] == facts["env_kwargs"]["camera_widths"] == 64
    assert facts["wm_camera"]["fovy"] == 31.0


# From here on with robosuite.


@pytest.mark.sim
def test_starts_of_two_splits_have_nothing_in_common(simulations):
    drawn = [draw_starts(get_task("Lift"), split, 2, simulations) for split in ("train", "test")]
    states = np.concatenate([pool.states for pool in drawn])
    assert states.shape == (4, 74) and len(np.unique(states[:, 10:12], axis=0)) == 4


@pytest.mark.sim
def test_a_real_recording_goes_on_to_the_same_content(tmp_path, monkeypatch, simulations):
    starts, task = load_starts("Lift", "train"), replace(TASK, horizon=6)
    given = {"indices": [4, 2, 0], "starts": starts, "task": task}
    expert(tmp_path / "whole.hdf5", simulations, **given)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        expert(tmp_path / "broken.hdf5", simulations, **given)
    expert(tmp_path / "broken.hdf5", simulations, **given)
    whole = content(tmp_path / "whole.hdf5")
    assert content(tmp_path / "broken.hdf5") == whole
    assert [episode[-1][1] for episode in whole] == [4, 2, 0]


@pytest.mark.sim
def test_the_experts_frames_are_those_that_its_actions_lead_to(tmp_path, simulations):
    starts = load_starts("Lift", "train")
    expert(tmp_path / "a.hdf5", simulations, [6], starts, task=replace(TASK, horizon=6))
    (episode,) = load(tmp_path / "a.hdf5")
    request = (starts.states[6], episode.actions, False, True)
    (played,) = simulations.map("play", [request])
    assert np.array_equal(episode.frames[1:], played.frames)
    assert np.array_equal(episode.states, played.states)
    assert np.array_equal(episode.states[0], starts.states[6][:32])
    assert np.array_equal(episode.low_dim["object"][:, :3], episode.states[:, 10:13].astype("f4"))


@pytest.mark.sim
def test_a_policy_is_recorded_in_the_real_world(tmp_path, monkeypatch, simulations):
    task = replace(TASK, horizon=2)
    monkeypatch.setattr(vector, "SimulationPool", lambda *_: simulations)
    monkeypatch.setattr(collection, "TAIL", 2)
    env = RealVectorEnv(
        "Lift",
        2,
        chunk=3,
        horizon=4,
        ignore_terminations=True,
        return_frames=True,
        autoreset_mode="Disabled",
    )
    rng = np.random.default_rng(0)
    record_policy(
        tmp_path / "a.hdf5",
        task,
        env,
        lambda first: lambda obs, instructions: rng.uniform(-1, 1, (2, 3, 7)),
        [5, 6],
        source="rollouts",
        seed=0,
    )
    for episode, start in zip(load(tmp_path / "a.hdf5"), (5, 6), strict=True):
        state = load_starts("Lift", "train").states[start]
        (played,) = simulations.map("play", [(state, episode.actions, False, True)])
        assert len(episode) == 2 and episode.start == start
        assert np.array_equal(episode.frames[1:], played.frames)

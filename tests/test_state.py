"""Saving, restoring and branching, in both worlds on fakes: what follows is the same to the bit."""

from __future__ import annotations

import copy
import io
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from tests.fakes import FakeSuccess, FakeWorldModel, fake_pool, imagined
from tests.worlds import WORLDS, assert_same, flat, ladder, noisy, random_actions
from wm_gym.single import SingleEnv
from wm_gym.starts import save_starts
from wm_gym.state import WorldState

MODES = ["NextStep", "SameStep", "Disabled"]


@pytest.fixture(params=WORLDS)
def make(request):
    """Make one of the worlds, with episodes of at most seven steps unless told otherwise."""

    def make(num_envs: int = 3, **options):
        return WORLDS[request.param](num_envs, **{"horizon": 7} | options)

    return make


def play(env, actions, seed: int | None = None) -> list:
    """Step through a list of actions; return everything that came."""
    came = [] if seed is None else [env.reset(seed=seed)]
    return came + [env.step(action) for action in actions]


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_what_follows_a_restore_is_what_followed_the_save(make, mode, chunk):
    options = {"autoreset_mode": mode, "chunk": chunk, "return_frames": True}
    env, other = make(**options), make(**options)
    actions = random_actions(env, 12 // chunk)
    half = len(actions) // 2
    play(env, actions[:half], seed=5)
    state = env.get_state()
    expected = play(env, actions[half:])
    for world in (env, other):
        play(world, actions[:1], seed=9)  # elsewhere and otherwise
        world.set_state(state)
        assert_same(world.get_state(), state)
        assert_same(play(world, actions[half:]), expected)


def test_a_reset_after_a_restore_goes_on_with_the_stream_of_seeds(make):
    env = make(starts=fake_pool(50))
    env.reset(seed=5)
    state = env.get_state()
    expected = [env.reset()[1]["start"].tolist() for _ in range(3)]
    env.reset(seed=6)
    env.set_state(state)
    assert [env.reset()[1]["start"].tolist() for _ in range(3)] == expected


def test_the_episodes_of_these_tests_end_at_different_steps_and_in_both_ways(make):
    env = make(autoreset_mode="Disabled")
    came = play(env, random_actions(env, 7), seed=5)[1:]
    terminated, truncated = (np.stack([step[i] for step in came]) for i in (2, 3))
    assert terminated.any() and truncated.any()
    assert len(set((terminated | truncated).argmax(0))) > 1


def test_a_restore_returns_what_a_reset_would(make):
    env = make(autoreset_mode="Disabled", return_frames=True)
    _, reset_info = env.reset(seed=0)
    for actions in random_actions(env, 4):
        obs, *_, info = env.step(actions)
    state = env.get_state()
    env.reset(seed=1)
    restored, told = env.set_state(state)
    assert np.array_equal(restored["image"], obs["image"])
    assert told.keys() == reset_info.keys()
    for key in ("success", "success_probability", "elapsed_steps", "start"):
        assert np.array_equal(told[key], info[key]), key
    assert np.array_equal(told["active"], ~state.over)
    assert not told["played"].any() and not told["frames_mask"].any()


def test_a_state_says_what_it_holds(make):
    env = make(2, horizon=3, autoreset_mode="Disabled")
    env.reset(seed=4, options={"start": [0, 2]})
    env.reset(options={"start": [1, 0], "reset_mask": np.array([True, False])})
    env.step(np.zeros((2, 7)))
    state = env.get_state()
    assert state.seeds.tolist() == [4, 5] and state.episode.tolist() == [1, 0]
    assert state.elapsed.tolist() == [1, 1] and state.start.tolist() == [1, 2]
    assert state.success.tolist() == state.over.tolist() == [False, False]
    assert state.image.shape == (2, 8, 8, 3) and state.image.dtype == np.uint8
    assert state.settings == {
        "world": type(env).__name__,
        "task": "Lift",
        "split": "train",
        "horizon": 3,
        "chunk": 1,
        "ignore_terminations": False,
        "max_uncertainty": math.inf,
        "unanimous": env.unanimous,
        **env.made_of,
    }


def test_chosen_rows_are_restored_and_the_others_stay_as_they_were(make):
    free, mixed = make(), make()
    actions = random_actions(free, 3)
    play(free, actions, seed=5)
    play(mixed, actions, seed=5)
    mixed.set_state(mixed.get_state([2, 0]), [0, 1])  # so the rows are now 2, 0, 2
    more = random_actions(free, 4, seed=1)
    expected = play(free, more)
    for left, right in zip(play(mixed, [a[[2, 0, 2]] for a in more]), expected, strict=True):
        left, right = flat(left), flat(right)
        for key, array in right.items():
            assert np.array_equal(left[key], array[[2, 0, 2]]), key


def test_a_state_goes_into_a_world_with_more_rows(make):
    small, large = make(1), make(4)
    play(small, random_actions(small, 2), seed=5)
    large.reset(seed=0)
    obs, info = large.set_state(small.fork(0, 2), [3, 1])
    expected = small.step(np.full((1, 7), 0.4, np.float32))
    came = large.step(np.full((4, 7), 0.4, np.float32))
    for row in (3, 1):
        assert info["elapsed_steps"][row] == 2
        assert np.array_equal(came[0]["image"][row], expected[0]["image"][0])


def test_a_fork_is_one_row_several_times_and_all_go_the_same_way(make):
    env = make()
    play(env, random_actions(env, 2), seed=5)
    fork = env.fork(1, 3)
    assert_same(fork, env.get_state([1, 1, 1]))
    env.set_state(fork)
    for action in random_actions(env, 5):
        images = env.step(np.repeat(action[:1], 3, axis=0))[0]["image"]
        assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_copies_with_seeds_of_their_own_go_different_ways_where_there_is_noise():
    env = noisy(2)
    env.reset(seed=0)
    env.set_state(env.fork(0, 2)._replace(seeds=np.array([7, 8])))
    images = env.step(np.zeros((2, 7)))[0]["image"]
    assert not np.array_equal(images[0], images[1])


def test_take_chooses_rows_of_a_state(make):
    env = make()
    play(env, random_actions(env, 2), seed=5)
    assert_same(env.get_state().take([2, 0, 2]), env.get_state([2, 0, 2]))
    assert isinstance(env.get_state().take([0]), WorldState)


def test_a_state_is_shared_with_nobody(make):
    env = make()
    actions = random_actions(env, 6)
    play(env, actions[:2], seed=5)
    state = env.get_state()
    kept = copy.deepcopy(state)
    expected = play(env, actions[2:])
    env.reset(seed=1)
    assert_same(state, kept)
    env.set_state(state)
    for array in arrays(state):
        array[...] = 1
    assert_same(play(env, actions[2:]), expected)


def arrays(value) -> list:
    """List the arrays and tensors of nested tuples themselves, so that they can be written to."""
    if isinstance(value, tuple):
        return [array for item in value for array in arrays(item)]
    return [] if isinstance(value, dict) else [value]


def by_pickle(state):
    return pickle.loads(pickle.dumps(state))


def by_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [by_pickle, by_torch, copy.deepcopy])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_a_state_can_be_kept_in_a_file(make, copied, output):
    env = make(output=output)
    actions = random_actions(env, 6)
    play(env, actions[:2], seed=5)
    state = copied(env.get_state())
    expected = play(env, actions[2:])
    env.set_state(state)
    assert_same(play(env, actions[2:]), expected)


def test_a_state_crosses_between_numpy_and_torch_output(make):
    numpy, tensors = make(), make(output="torch")
    actions = random_actions(numpy, 6)
    play(numpy, actions[:2], seed=5)
    tensors.reset(seed=0)
    tensors.set_state(numpy.get_state())
    for action in actions[2:]:
        left, right = flat(numpy.step(action)), flat(tensors.step(torch.from_numpy(action)))
        assert all(np.array_equal(left[key], right[key]) for key in left)


def test_rows_that_were_frozen_are_frozen_again(make):
    env = make(2, horizon=2, autoreset_mode="Disabled")
    play(env, np.zeros((2, 2, 7)), seed=5)
    state = env.get_state()
    env.reset(seed=0)
    obs, info = env.set_state(state)
    assert info["active"].tolist() == [False, False]
    came = env.step(np.ones((2, 7)))
    assert np.array_equal(came[0]["image"], obs["image"]) and not came[-1]["played"].any()


def test_the_verdicts_of_the_last_windows_are_restored():
    # Level 126 is over the threshold of 0.45; two such windows in a row make a success.
    success = FakeSuccess(threshold=0.45, hold_k=2, hold_n=2)
    env = imagined(1, success=success)
    env.reset(seed=0, options={"start": [0]})
    push = np.full((1, 7), 1, np.float32)
    env.step(push)
    before = env.get_state()
    env.step(push)
    after = env.get_state()
    stay = np.zeros((1, 7), np.float32)
    env.set_state(before)
    assert env.step(stay)[1].tolist() == [0]
    env.set_state(after)
    assert env.step(stay)[1].tolist() == [1]


def test_an_episode_begun_from_pictures_is_restored():
    env = noisy(1)
    frames = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8, 3), np.uint8)
    env.reset(seed=0, options={"frames": frames})
    state = env.get_state()
    assert state.start.tolist() == [-1]
    expected = env.step(np.zeros((1, 7)))
    env.reset(seed=0)
    env.set_state(state)
    assert_same(env.step(np.zeros((1, 7))), expected)


def at_reset(env) -> WorldState:
    env.reset(seed=0)
    return env.get_state()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda state: (b"state",), "get_state or fork returned, got bytes"),
        (lambda state: (tuple(state),), "get_state or fork returned, got tuple"),
        (lambda state: (state.take([0, 1]),), "one state a row, 3 of them, got 2"),
        (lambda state: (state, [0, 1]), "one state a row, 2 of them, got 3"),
        (lambda state: (state, [0, 1, 1]), r"every row once, got \[0, 1, 1\]"),
        (lambda state: (state, [0, 1, 3]), r"lie in 0..2, got \[3\]"),
        (lambda state: (state, [0, 1, -1]), r"lie in 0..2, got \[-1\]"),
        (lambda state: (state, [True, True, True]), "at least one integer, got bool"),
        (lambda state: (state, []), "at least one integer"),
        (lambda state: (state._replace(over=np.zeros(2, bool)),), "shapes"),
        (lambda state: (state._replace(hidden=np.zeros((3, 99))),), r"shapes.*\(3, 99\)"),
    ],
)
def test_what_is_no_state_of_these_rows_is_refused_and_changes_nothing(make, arguments, message):
    env = make()
    play(env, random_actions(env, 2), seed=5)
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.set_state(*arguments(at_reset(make())))
    assert_same(env.get_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 8}, "'horizon': 8.*'horizon': 7"),
        ({"chunk": 2}, "'chunk': 2.*'chunk': 1"),
        ({"ignore_terminations": True}, "'ignore_terminations': True"),
        ({"starts": fake_pool(split="test"), "split": "test"}, "'split': 'test'.*'split': 'train'"),
    ],
)
def test_a_state_of_a_world_with_other_rules_is_refused(make, options, message):
    env = make()
    before = at_reset(env)
    with pytest.raises(ValueError, match=message):
        env.set_state(at_reset(make(**options)))
    assert_same(env.get_state(), before)


def test_a_state_of_the_other_world_is_refused():
    real, dreamed = ladder(2), noisy(2)
    states = at_reset(real), at_reset(dreamed)
    with pytest.raises(ValueError, match="'world': 'ImaginedVectorEnv'.*'RealVectorEnv'"):
        real.set_state(states[1])
    with pytest.raises(ValueError, match="'world': 'RealVectorEnv'"):
        dreamed.set_state(states[0])


def test_a_state_of_a_simulator_with_another_state_is_refused():
    env = ladder(2)
    state = at_reset(env)
    wide = state._replace(hidden=np.repeat(state.hidden, 2, 1))
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 1\).*same models"):
        env.set_state(wide)


@pytest.mark.parametrize("part", ["states", "frames", "low_dim"])
def test_a_state_from_other_starts_is_refused(make, part):
    pool = fake_pool()
    other = {"states": pool.states + 1, "frames": pool.frames + 1}
    other["low_dim"] = {"robot0_x": np.zeros((len(pool), 1), np.float32)}
    moved = replace(pool, **{part: other[part]})
    env = make(2)
    before = at_reset(env)
    with pytest.raises(ValueError, match=r"saved with \{'starts': '\w{16}'\}"):
        env.set_state(at_reset(make(2, starts=moved)))
    assert_same(env.get_state(), before)


def test_same_step_has_no_place_for_an_episode_that_is_over(make):
    frozen, flowing = (make(2, horizon=1, autoreset_mode=mode) for mode in ("Disabled", "SameStep"))
    for env in (frozen, flowing):
        play(env, np.zeros((1, 2, 7)), seed=5)
    before = flowing.get_state()
    with pytest.raises(ValueError, match=r"Entries \[0, 1\] .* wait for a reset"):
        flowing.set_state(frozen.get_state())
    assert_same(flowing.get_state(), before)


@pytest.mark.parametrize("rows", [2, [[0]], [0.0], "all", [3], [-1]])
def test_rows_that_are_none_cannot_be_saved(make, rows):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="rows must"):
        env.get_state(rows)


def test_a_fork_needs_one_row_and_a_positive_number(make):
    env = make()
    env.reset(seed=0)
    for row, n, message in [(3, 1, "0..2, got"), (0, 0, "n must"), (0, 1.5, "n must")]:
        with pytest.raises(ValueError, match=message):
            env.fork(row, n)


def test_there_is_no_state_before_the_first_reset_or_after_the_end(make):
    env, other = make(), make()
    state = at_reset(other)
    for call in (env.get_state, lambda: env.set_state(state), lambda: env.fork(0, 2)):
        with pytest.raises(ResetNeeded):
            call()
    other.close()
    for call in (other.get_state, lambda: other.set_state(state)):
        with pytest.raises(ClosedEnvironmentError):
            call()


@pytest.fixture
def single(tmp_path):
    """Make a single imagined environment of fakes."""
    save_starts([fake_pool()], tmp_path)
    models = {"world_model": FakeWorldModel(noise=0.3), "success": FakeSuccess(threshold=2.0)}
    return SingleEnv("Lift", starts=str(tmp_path), deterministic=True, **models)


def test_the_single_environment_goes_on_from_its_state(single):
    single.reset(seed=3)
    single.step(np.ones(7))
    state = single.get_state()
    expected = single.step(np.zeros(7))
    single.reset(seed=4)
    obs, info = single.set_state(state)
    assert obs["image"].shape == (8, 8, 3) and info["elapsed_steps"] == 1
    assert_same(single.step(np.zeros(7)), expected)


def test_branches_of_a_single_environment_are_played_side_by_side(single):
    single.reset(seed=3)
    single.step(np.ones(7))
    branches = noisy(4, world_model=single.world.world_model, success=single.world.success)
    branches.reset(seed=0)
    branches.set_state(single.fork(4))
    images = branches.step(np.zeros((4, 7)))[0]["image"]
    expected = single.step(np.zeros(7))[0]["image"]
    assert all(np.array_equal(image, expected) for image in images)

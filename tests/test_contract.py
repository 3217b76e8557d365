"""The bookkeeping that both worlds share, on a scripted world whose timelines fit on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

from tests.fakes import ScriptedEnv, fake_pool, imagined
from wm_gym.checks import to_numpy

NEVER = 99
MODES = ["NextStep", "SameStep", "Disabled"]


def zeros(env: ScriptedEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


def shown(image: np.ndarray) -> list[tuple[int, int]]:
    """Read (episode, elapsed) back from every row's picture."""
    return [tuple(pixel) for pixel in image[:, 0, 0, 1:].tolist()]


def timeline(env: ScriptedEnv, steps: int) -> list[tuple]:
    """Step with zeros; say what each row shows, its reward, flags and whether it was active."""
    lines = []
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(zeros(env))
        marks = [
            f"{r:g}{'T' if t else ''}{'H' if h else ''}{'' if a else '-'}"
            for r, t, h, a in zip(reward, terminated, truncated, info["active"], strict=True)
        ]
        lines.append((shown(obs["image"]), marks))
    return lines


# Rows succeed at step 2, never (so the horizon of 3 ends them) and at step 1.


def test_next_step_shows_the_last_picture_then_spends_one_step_on_the_reset():
    env = ScriptedEnv([2, NEVER, 1])
    env.reset(seed=0)
    assert timeline(env, 4) == [
        ([(0, 1), (0, 1), (0, 1)], ["0", "0", "1T"]),
        ([(0, 2), (0, 2), (1, 0)], ["1T", "0", "0-"]),
        ([(1, 0), (0, 3), (1, 1)], ["0-", "0H", "1T"]),
        ([(1, 1), (1, 0), (2, 0)], ["0", "0-", "0-"]),
    ]
    assert env.calls == [[0, 1, 2], [0, 1], [1, 2], [0]]  # a row being reset is not played


def test_same_step_shows_the_next_episode_at_once_and_keeps_the_last_picture_aside():
    env = ScriptedEnv([2, NEVER, 1], autoreset_mode="SameStep")
    env.reset(seed=0)
    assert timeline(env, 3) == [
        ([(0, 1), (0, 1), (1, 0)], ["0", "0", "1T"]),
        ([(1, 0), (0, 2), (2, 0)], ["1T", "0", "1T"]),
        ([(1, 1), (1, 0), (3, 0)], ["0", "0H", "1T"]),
    ]


def test_same_step_gives_dense_final_observations_and_infos_with_masks():
    env = ScriptedEnv([2, NEVER, 1], autoreset_mode="SameStep", return_frames=True)
    env.reset(seed=0)
    env.step(zeros(env))
    info = env.step(zeros(env))[-1]
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True, False, True]
    assert shown(info["final_obs"]["image"]) == [(0, 2), (0, 2), (1, 1)]
    final = info["final_info"]
    assert final["success"].tolist() == [True, False, True]
    assert final["elapsed_steps"].tolist() == [2, 2, 1]
    assert final["played"].tolist() == [1, 1, 1]
    assert shown(final["frames"][:, 0]) == [(0, 2), (0, 2), (1, 1)]
    assert info["success"].tolist() == [False, False, False]
    assert info["elapsed_steps"].tolist() == [0, 2, 0]
    assert info["played"].tolist() == [0, 1, 0]
    assert info["frames_mask"].tolist() == [[False], [True], [False]]
    assert shown(info["frames"][:, 0]) == [(1, 0), (0, 2), (2, 0)]


def test_same_step_has_no_final_keys_while_nothing_ends():
    env = ScriptedEnv([2], autoreset_mode="SameStep")
    env.reset(seed=0)
    assert "final_obs" not in env.step(zeros(env))[-1]


def test_disabled_freezes_rows_until_their_reset():
    env = ScriptedEnv([2, NEVER, 1], autoreset_mode="Disabled")
    env.reset(seed=0)
    assert timeline(env, 4) == [
        ([(0, 1), (0, 1), (0, 1)], ["0", "0", "1T"]),
        ([(0, 2), (0, 2), (0, 1)], ["1T", "0", "0-"]),
        ([(0, 2), (0, 3), (0, 1)], ["0-", "0H", "0-"]),
        ([(0, 2), (0, 3), (0, 1)], ["0-", "0-", "0-"]),
    ]
    assert env.calls == [[0, 1, 2], [0, 1], [1]]  # and nobody is played once all are frozen
    obs, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert shown(obs["image"]) == [(0, 2), (1, 0), (0, 1)]
    assert info["active"].tolist() == [False, True, False]
    assert timeline(env, 1) == [([(0, 2), (1, 1), (0, 1)], ["0-", "0", "0-"])]


def test_frozen_rows_keep_their_verdict_in_info():
    env = ScriptedEnv([1, NEVER], autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step(zeros(env))
    info = env.step(zeros(env))[-1]
    assert info["success"].tolist() == [True, False]
    assert info["success_probability"].tolist() == [1.0, 0.0]
    assert info["elapsed_steps"].tolist() == [1, 2]
    assert info["played"].tolist() == [0, 1]


def test_a_new_episode_starts_with_a_clean_slate():
    env = ScriptedEnv([1], autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step(zeros(env))
    info = env.reset()[1]
    keys = ("success", "success_probability", "elapsed_steps", "clipped", "played", "active")
    assert [info[key][0] for key in keys] == [False, 0.0, 0, 0, 0, True]


def test_masked_reset_leaves_the_other_rows_as_they_were():
    env = ScriptedEnv([NEVER] * 3, autoreset_mode="Disabled")
    env.reset(seed=0)
    before = env.step(zeros(env))
    mask = np.array([False, True, False])
    obs, info = env.reset(seed=[None, 8, 9], options={"reset_mask": mask})
    assert np.array_equal(obs["image"][~mask], before[0]["image"][~mask])
    assert info["elapsed_steps"].tolist() == [1, 0, 1]
    assert env.seeds.tolist() == [0, 8, 2]


def test_chunk_that_does_not_divide_the_horizon_plays_what_is_left():
    env = ScriptedEnv([NEVER, 4], chunk=3, horizon=5, return_frames=True, autoreset_mode="Disabled")
    env.reset(seed=0)
    info = env.step(zeros(env))[-1]
    assert info["played"].tolist() == [3, 3]
    obs, reward, terminated, truncated, info = env.step(zeros(env))
    assert info["played"].tolist() == [2, 1]
    assert (reward.tolist(), terminated.tolist()) == ([0, 1], [False, True])
    assert truncated.tolist() == [True, False]
    assert info["frames_mask"].tolist() == [[True, True, False], [True, False, False]]
    assert shown(info["frames"][0]) == [(0, 4), (0, 5), (0, 5)]
    assert shown(info["frames"][1]) == [(0, 4), (0, 4), (0, 4)]
    assert np.array_equal(obs["image"], info["frames"][:, -1])


def test_every_frame_says_whether_the_task_was_done_then():
    # ScriptedEnv succeeds at one step only, so the predicate is lost again right after it.
    env = ScriptedEnv(
        [NEVER, 2, 4],
        chunk=3,
        horizon=5,
        return_frames=True,
        ignore_terminations=True,
        autoreset_mode="Disabled",
    )
    env.reset(seed=0)
    first, second = (env.step(zeros(env))[-1]["frames_success"] for _ in range(2))
    assert first.tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert second.tolist() == [[False] * 3, [False] * 3, [True, False, False]]


def test_frames_success_is_false_after_the_last_step_played_and_while_frozen():
    env = ScriptedEnv([NEVER, 1], chunk=2, return_frames=True, autoreset_mode="Disabled")
    _, info = env.reset(seed=0)
    assert info["frames_success"].tolist() == [[False, False], [False, False]]
    assert env.step(zeros(env))[-1]["frames_success"].tolist() == [[False, False], [True, False]]
    assert not env.step(zeros(env))[-1]["frames_success"].any()


def test_next_step_has_no_success_in_the_frames_of_a_row_being_reset():
    env = ScriptedEnv([1, 2], return_frames=True)
    env.reset(seed=0)
    rows = [env.step(zeros(env))[-1]["frames_success"][:, 0].tolist() for _ in range(3)]
    assert rows == [[True, False], [False, True], [True, False]]


def test_same_step_keeps_the_success_of_ended_frames_in_final_info_alone():
    env = ScriptedEnv([1, NEVER], autoreset_mode="SameStep", return_frames=True)
    env.reset(seed=0)
    info = env.step(zeros(env))[-1]
    assert info["final_info"]["frames_success"].tolist() == [[True], [False]]
    assert info["frames_success"].tolist() == [[False], [False]]


def test_frames_success_comes_only_with_frames():
    env = ScriptedEnv([1])
    env.reset(seed=0)
    assert "frames_success" not in env.step(zeros(env))[-1]


def test_success_at_the_horizon_terminates_and_does_not_truncate():
    env = ScriptedEnv([3], horizon=3, chunk=3)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(zeros(env))
    assert (reward[0], terminated[0], truncated[0]) == (1.0, True, False)


def test_ignored_terminations_run_to_the_horizon_and_remember_success():
    env = ScriptedEnv([2, NEVER], horizon=4, ignore_terminations=True, autoreset_mode="Disabled")
    env.reset(seed=0)
    rows = []
    for _ in range(4):
        _, reward, terminated, truncated, info = env.step(zeros(env))
        rows.append((reward[0], terminated[0], truncated[0], info["success"].tolist()))
    assert rows == [
        (0.0, False, False, [False, False]),
        (1.0, False, False, [True, False]),
        (0.0, False, False, [True, False]),
        (0.0, False, True, [True, False]),
    ]


def test_actions_are_clipped_and_counted_only_where_played():
    env = ScriptedEnv([1, NEVER], chunk=2, autoreset_mode="Disabled")
    env.reset(seed=0)
    actions = zeros(env)
    actions[0, 0, :3] = 1.5
    actions[:, 1, :2] = -2.0
    assert env.step(actions)[-1]["clipped"].tolist() == [3, 2]  # row 0 plays one action only
    assert env.step(actions)[-1]["clipped"].tolist() == [0, 0]  # frozen; last step of the horizon


def test_strict_actions_refuse_what_they_would_clip():
    env = ScriptedEnv([NEVER], strict_actions=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="1 values outside .largest magnitude 1.5"):
        env.step(np.array([[1.5, 0, 0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("bad", [np.zeros((2, 6)), np.zeros(7), np.zeros((2, 1, 7)), "left"])
def test_actions_of_another_shape_are_refused(bad):
    env = ScriptedEnv([NEVER] * 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"must have shape \(2, 7\)"):
        env.step(bad)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "one action of 7"), ({"chunk": 3}, "a chunk of 3 actions of 7")]
)
def test_the_error_says_what_actions_this_world_takes(options, expected):
    env = ScriptedEnv([NEVER] * 2, **options)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"pass {expected} values for each environment"):
        env.step(np.zeros((2, 6)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_no_numbers_are_refused_by_row(bad):
    env = ScriptedEnv([NEVER] * 2)
    env.reset(seed=0)
    actions = zeros(env)
    actions[1, 3] = bad
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        env.step(actions)


def test_the_callers_actions_and_options_are_left_alone():
    env = ScriptedEnv([NEVER] * 2)
    options = {"start": [1, 2], "reset_mask": np.array([True, True])}
    env.reset(options=options)
    assert list(options) == ["start", "reset_mask"] and options["start"] == [1, 2]
    actions = np.full((2, 7), 3.0, np.float32)
    env.step(actions)
    assert (actions == 3.0).all()


def test_given_starts_are_used_and_reported():
    env = ScriptedEnv([NEVER] * 2)
    _, info = env.reset(options={"start": np.array([4, 1])})
    assert info["start"].tolist() == [4, 1] and env.begun == [(0, 4), (1, 1)]


def test_under_a_mask_start_has_one_entry_an_environment():
    env = ScriptedEnv([NEVER] * 3)
    env.reset(seed=0)
    env.begun.clear()
    mask = np.array([False, False, True])
    env.reset(options={"start": np.array([-7, 77, 3]), "reset_mask": mask})
    assert env.begun == [(2, 3)]
    with pytest.raises(ValueError, match="3 integers"):
        env.reset(options={"start": np.array([3]), "reset_mask": mask})


@pytest.mark.parametrize("starts", [[0, 5], [-1, 0], [0.0, 1.0], 3, [True, False]])
def test_starts_outside_the_pool_or_of_another_kind_are_refused(starts):
    with pytest.raises(ValueError, match="tart"):
        ScriptedEnv([NEVER] * 2).reset(options={"start": starts})


@pytest.mark.parametrize(
    "mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [1, 0], np.ones((2, 1), bool)]
)
def test_masks_that_are_empty_or_of_another_kind_are_refused(mask):
    env = ScriptedEnv([NEVER] * 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    "options", [{"starts": [0]}, {"start": [0], "frames": 1}, {"actions": np.zeros((1, 0, 7))}]
)
def test_unknown_and_clashing_options_are_refused(options):
    with pytest.raises(ValueError, match="option"):
        ScriptedEnv([NEVER]).reset(options=options)


def test_actions_in_bfloat16_are_played():
    """0.3 is 0.30078125 there."""
    env = imagined(1, horizon=9)
    env.reset(seed=0)
    halves = torch.full((1, 7), 0.3, dtype=torch.bfloat16)
    assert to_numpy(halves).dtype == np.float32 and (to_numpy(halves) == 0.30078125).all()
    assert env.step(halves)[-1]["played"].tolist() == [1]


def test_a_pool_of_another_split_or_task_is_refused():
    named = "task 'Lift' and split 'train', got a pool of 'Lift' and 'test'; pass .*split='test'"
    with pytest.raises(ValueError, match=named):
        ScriptedEnv([NEVER], starts=fake_pool(split="test"))
    with pytest.raises(ValueError, match="got a pool of 'Stack' and 'train'"):
        ScriptedEnv([NEVER], starts=replace(fake_pool(), task="Stack"))
    pool = fake_pool(split="test")
    assert ScriptedEnv([NEVER], starts=pool, split="test").pool is pool


def test_under_a_mask_without_start_rows_draw_the_next_of_their_own_stream():
    env = ScriptedEnv([NEVER] * 3, starts=fake_pool(50))
    env.reset(seed=7)
    env.begun.clear()
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert env.begun == [(1, starts_of(7, 2, rows=3)[1][1])]


def test_an_integer_seed_under_a_mask_seeds_by_place_and_these_rows_alone():
    env = ScriptedEnv([NEVER] * 3)
    env.reset(seed=0)
    env.reset(seed=10, options={"reset_mask": np.array([False, True, True])})
    assert env.seeds.tolist() == [0, 11, 12] and env.episode.tolist() == [0, 0, 0]


def test_pictures_under_a_mask_begin_these_rows_alone():
    env = imagined(2)
    env.reset(seed=0, options={"start": [1, 2]})
    frames = np.full((2, 1, 8, 8, 3), 50, np.uint8)
    obs, info = env.reset(options={"frames": frames, "reset_mask": np.array([False, True])})
    assert obs["image"][:, 0, 0, 0].tolist() == [101, 50] and info["start"].tolist() == [1, -1]


def test_a_world_that_needs_its_state_refuses_pictures_and_changes_nothing():
    env = ScriptedEnv([NEVER])
    env.reset(seed=4)
    frames = np.zeros((1, 2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="imagined backend"):
        env.reset(seed=5, options={"frames": frames})
    assert env.seeds.tolist() == [4] and env.episode.tolist() == [0]


def starts_of(seed, episodes: int, rows: int = 1) -> list[list[int]]:
    env = ScriptedEnv([1] * rows, starts=fake_pool(50), autoreset_mode="SameStep")
    infos = [env.reset(seed=seed)[1]] + [env.step(zeros(env))[-1] for _ in range(episodes - 1)]
    return np.stack([info["start"] for info in infos], 1).tolist()


def test_starts_follow_from_seed_and_episode_alone():
    both = starts_of(7, 6, rows=2)
    assert both == starts_of([7, 8], 6, rows=2)
    assert both[0] == starts_of(7, 6)[0] and both[1] == starts_of(8, 6)[0]
    assert both[0] != both[1] and len(set(both[0])) > 1


def test_reset_without_a_seed_goes_on_with_the_stream():
    env = ScriptedEnv([NEVER] * 2, starts=fake_pool(50))
    seen = [env.reset(seed=7)[1]["start"], env.reset()[1]["start"]]
    assert np.stack(seen, 1).tolist() == starts_of(7, 2, rows=2)
    env.reset(seed=[None, 7])
    assert env.seeds.tolist() == [7, 7] and env.episode.tolist() == [2, 0]


@pytest.mark.parametrize("seed", ["a", [1], [1, 2, 3], -1, [0, -4], 1.5, [1, 2.5]])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        ScriptedEnv([NEVER] * 2).reset(seed=seed)


def test_the_first_call_is_a_reset_of_every_row():
    env = ScriptedEnv([NEVER] * 2)
    with pytest.raises(ResetNeeded):
        env.step(zeros(env))
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, False])})


def test_a_closed_environment_says_so_and_closes_twice():
    env = ScriptedEnv([NEVER])
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.step(zeros(env))


@pytest.mark.parametrize("name", ["next_step", "NextStep", "NEXT_STEP", AutoresetMode.NEXT_STEP])
def test_autoreset_modes_are_read_in_any_spelling(name):
    assert ScriptedEnv([1], autoreset_mode=name).metadata["autoreset_mode"] is (
        AutoresetMode.NEXT_STEP
    )


def test_metadata_belongs_to_the_instance():
    first, second = ScriptedEnv([1], autoreset_mode="disabled"), ScriptedEnv([1])
    assert first.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert second.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in ScriptedEnv.metadata


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("autoreset_mode", "later"),
        ("chunk", 0),
        ("chunk", 9),
        ("chunk", 2.0),
        ("horizon", 0),
        ("output", "jax"),
        ("render_mode", "human"),
    ],
)
def test_bad_keywords_are_named(keyword, value):
    with pytest.raises(ValueError, match=keyword):
        ScriptedEnv([1], **{keyword: value})


@pytest.mark.parametrize(("chunk", "shape"), [(None, (2, 7)), (1, (2, 1, 7)), (8, (2, 8, 7))])
def test_spaces_hold_what_comes_and_goes(chunk, shape):
    env = ScriptedEnv([NEVER] * 2, chunk=chunk)
    obs, _ = env.reset(seed=0)
    assert env.action_space.shape == shape
    assert obs in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space
    assert env.instructions == ["lift the red cube"] * 2


def test_dtypes_and_shapes_of_a_numpy_step():
    env = ScriptedEnv([NEVER] * 2, chunk=4, return_frames=True)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(zeros(env))
    kinds = {"reward": reward, "terminated": terminated, "truncated": truncated, **info}
    assert {key: (value.dtype.name, value.shape) for key, value in kinds.items()} == {
        "reward": ("float64", (2,)),
        "terminated": ("bool", (2,)),
        "truncated": ("bool", (2,)),
        "success": ("bool", (2,)),
        "success_probability": ("float32", (2,)),
        "uncertainty": ("float32", (2,)),
        "elapsed_steps": ("int64", (2,)),
        "start": ("int64", (2,)),
        "active": ("bool", (2,)),
        "clipped": ("int64", (2,)),
        "played": ("int64", (2,)),
        "frames": ("uint8", (2, 4, 8, 8, 3)),
        "frames_mask": ("bool", (2, 4)),
        "frames_success": ("bool", (2, 4)),
    }


@pytest.mark.parametrize("mode", MODES)
def test_torch_output_equals_numpy_output(mode):
    options = {"autoreset_mode": mode, "return_frames": True}
    plain, tensors = (ScriptedEnv([2, 1], output=kind, **options) for kind in ("numpy", "torch"))
    plain.reset(seed=0)
    tensors.reset(seed=0)
    for _ in range(4):
        expected = flat(plain.step(zeros(plain)))
        came = flat(tensors.step(torch.from_numpy(zeros(tensors))))
        assert all(isinstance(value, torch.Tensor) for value in came.values())
        assert came.keys() == expected.keys()
        for key, value in came.items():
            assert np.array_equal(value.numpy(), expected[key]), key
        assert came["1"].dtype == torch.float32


def flat(value, name: str = "") -> dict:
    """Name every array of nested dictionaries and tuples."""
    if not isinstance(value, dict | tuple):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, item in items:
        found |= flat(item, f"{name}.{key}".lstrip("."))
    return found


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_returned_is_touched_by_later_steps_or_shared_with_the_caller(mode, output):
    env = ScriptedEnv([2, 1], autoreset_mode=mode, output=output, return_frames=True)
    returned = [flat(env.reset(seed=0))]
    for _ in range(4):
        returned.append(flat(env.step(zeros(env))))
        for value in returned[-2].values():
            value[...] = 1  # a caller may scribble on what it was given
    twin = ScriptedEnv([2, 1], autoreset_mode=mode, output=output, return_frames=True)
    twin.reset(seed=0)
    for _ in range(4):
        last = flat(twin.step(zeros(twin)))
    assert all(np.array_equal(value, returned[-1][key]) for key, value in last.items())


def test_render_gives_one_picture_a_row():
    env = ScriptedEnv([NEVER] * 2, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    pictures = env.render()
    assert isinstance(pictures, tuple) and len(pictures) == 2
    assert np.array_equal(np.stack(pictures), obs["image"])


def test_render_without_a_mode_warns():
    env = ScriptedEnv([NEVER])
    env.reset()
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None


@pytest.mark.parametrize(("mode", "lengths"), [("NextStep", [2, 3, 1]), ("SameStep", [2, 3, 1])])
def test_episode_statistics_agree_with_a_hand_count(mode, lengths):
    env = wrappers.RecordEpisodeStatistics(ScriptedEnv([2, NEVER, 1], autoreset_mode=mode))
    env.reset(seed=0)
    seen = {}
    for _ in range(3):
        info = env.step(np.zeros((3, 7)))[-1]
        for row in np.flatnonzero(info.get("_episode", [])):
            seen.setdefault(row, (info["episode"]["l"][row], info["episode"]["r"][row]))
    assert seen == {0: (2, 1.0), 1: (3, 0.0), 2: (1, 1.0)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.DictInfoToList,
        wrappers.NormalizeReward,
        wrappers.RecordEpisodeStatistics,
        wrappers.NumpyToTorch,
        lambda env: wrappers.ClipReward(env, 0.0, 0.5),
    ],
)
def test_stock_wrappers_step_through_episodes(wrap, mode):
    env = wrap(ScriptedEnv([2, NEVER, 1], autoreset_mode=mode))
    env.reset(seed=0)
    actions = torch.zeros(3, 7) if isinstance(env, wrappers.NumpyToTorch) else np.zeros((3, 7))
    for _ in range(8):
        env.step(actions)

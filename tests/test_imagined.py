"""The imagined world on fake models, and on small real ones.

In the fakes an action value of 1 brightens the picture by 0.1 of [-1, 1], that is by 12.75 of 255
and 0.05 in probability; start s is a picture of 100 + s.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.fakes import FakeMembers, FakeSuccess, FakeWorldModel, alone, fake_pool, imagined
from wm_gym.imagined import ImaginedVectorEnv, _load_success_classifier, cut
from wm_gym.noise import row_noise
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS, WorldModelConfig

BRIGHT_AT_7 = FakeSuccess(threshold=0.7)  # start 0: 100 / 255 + 7 x 0.05 = 0.742


def push(env: ImaginedVectorEnv, *values: float) -> np.ndarray:
    """Make every row's first action value `values` in turn (one, or one a step of the chunk)."""
    actions = np.zeros(env.action_space.shape, np.float32)
    actions[..., 0] = values
    return actions


def level(obs: dict) -> list[int]:
    """Read every row's brightness."""
    return obs["image"][:, 0, 0, 0].tolist()


def start_at(env: ImaginedVectorEnv, *starts: int, seed: int = 0) -> dict:
    return env.reset(seed=seed, options={"start": np.array(starts)})[0]


def test_the_first_picture_is_exactly_the_stored_one():
    frames = np.random.default_rng(0).integers(0, 256, fake_pool().frames.shape, np.uint8)
    pool = fake_pool()
    pool.frames[:] = frames
    obs = start_at(imagined(2, starts=pool), 3, 1)
    assert np.array_equal(obs["image"], frames[[3, 1]])


def test_one_step_adds_the_action():
    env = imagined(2)
    start_at(env, 0, 4)
    obs, reward, _, _, info = env.step(push(env, 1))
    assert level(obs) == [113, 117]  # 112.75, 116.75
    np.testing.assert_allclose(info["success_probability"], [112.75 / 255, 116.75 / 255], rtol=1e-5)
    assert reward.tolist() == [0, 0] and info["played"].tolist() == [1, 1]


@pytest.mark.parametrize("return_frames", [False, True])
def test_a_chunk_is_cut_at_the_first_success_and_shows_that_frame(return_frames):
    env = imagined(2, chunk=4, success=BRIGHT_AT_7, return_frames=return_frames)
    start_at(env, 0, 0)
    actions = push(env, 1, 1, 1, 1)
    actions[1] = 0
    env.step(actions)
    obs, reward, terminated, truncated, info = env.step(actions)
    assert level(obs) == [189, 100]  # 100 + 7 x 12.75 = 189.25
    assert (reward.tolist(), terminated.tolist()) == ([1, 0], [True, False])
    assert info["played"].tolist() == [3, 4] and info["elapsed_steps"].tolist() == [7, 8]
    assert info["success_probability"][0] == pytest.approx(189.25 / 255)
    if return_frames:
        assert info["frames"][0, :, 0, 0, 0].tolist() == [164, 176, 189, 189]
        assert info["frames_mask"].tolist() == [[True, True, True, False], [True] * 4]


def test_ignored_terminations_play_on_from_the_same_memory():
    env = imagined(chunk=4, success=BRIGHT_AT_7, ignore_terminations=True, horizon=10)
    start_at(env, 0)
    levels, rewards = [], []
    for _ in range(3):
        obs, reward, terminated, truncated, info = env.step(push(env, 1))
        levels += level(obs)
        rewards += reward.tolist()
    assert levels == [151, 202, 228]  # 4, 8 and 10 steps
    assert rewards == [0, 1, 0] and info["success"].tolist() == [True]
    assert not terminated[0] and truncated[0] and info["played"].tolist() == [2]


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("k", "n", "step"), [(1, 1, 1), (2, 2, 6), (2, 3, 3), (3, 5, 5)])
def test_success_must_hold_in_k_of_n_windows_across_chunks(k, n, step, chunk):
    # Over 0.42 at steps 1, 3, 5 and 6, back at 0.392 between.
    pushes = [1, -1, 1, -1, 1, 0, 0, 0, 0, 0, 0, 0]
    success = FakeSuccess(threshold=0.42, hold_k=k, hold_n=n)
    env = imagined(chunk=chunk, success=success, autoreset_mode="disabled")
    start_at(env, 0)
    for at in range(0, 12, chunk):
        info = env.step(push(env, *pushes[at : at + chunk]))[-1]
    assert info["elapsed_steps"].tolist() == [step] and info["success"].tolist() == [True]


def test_the_verdicts_of_one_episode_do_not_count_for_the_next():
    env = imagined(success=FakeSuccess(0.42, hold_k=2, hold_n=2), horizon=1)
    env.reset(options={"start": [0]}, seed=0)
    env.step(push(env, 1))
    start_at(env, 0)
    assert env.step(push(env, 1))[-1]["success"].tolist() == [False]


def test_windows_are_padded_by_the_first_frame_and_slide_on():
    success = FakeSuccess()
    env = imagined(chunk=2, success=success)
    start_at(env, 0)
    env.step(push(env, 1))
    env.step(push(env, 1))
    first, second = (seen[0, :, 0] * 127.5 + 127.5 for seen in success.windows)
    torch.testing.assert_close(first, torch.tensor([100.0] * 7 + [112.75, 125.5]))
    expected = [100.0] * 5 + [112.75, 125.5, 138.25, 151.0]
    torch.testing.assert_close(second, torch.tensor(expected))


def test_only_living_rows_are_imagined():
    model = FakeWorldModel()
    success = FakeSuccess(threshold=0.45)  # start 3 passes it in one step, start 0 in two
    env = imagined(3, world_model=model, success=success, autoreset_mode="disabled")
    start_at(env, 0, 3, 0)
    actions = push(env, 1)
    actions[2] = 0
    for _ in range(3):
        obs = env.step(actions)[0]
    assert model.rows_imagined == [3, 2, 1]
    assert level(obs) == [126, 116, 100]  # 125.5, 115.75


@pytest.mark.parametrize(("exact", "read"), [(False, [3]), (True, [1, 1, 1])])
def test_a_start_that_rows_share_is_read_once(exact, read):
    env = imagined(6, deterministic=exact)
    counts, begin = [], env.world_model.begin
    env.world_model.begin = lambda *seen: (counts.append(len(seen[0])), begin(*seen))[1]
    obs = start_at(env, 4, 1, 4, 4, 2, 1)  # 3 starts
    assert counts == read
    assert level(obs) == [104, 101, 104, 104, 102, 101]
    obs, *_, info = env.step(push(env, 1))
    assert level(obs) == [117, 114, 117, 117, 115, 114]  # 12.75 more
    expected = np.array([116.75, 113.75, 116.75, 116.75, 114.75, 113.75]) / 255
    np.testing.assert_allclose(info["success_probability"], expected, rtol=1e-5)


def test_no_model_is_called_when_every_row_is_frozen():
    model = FakeWorldModel()
    env = imagined(2, world_model=model, horizon=1, autoreset_mode="disabled")
    env.reset(seed=0)
    env.step(push(env, 1))
    env.step(push(env, 1))
    assert model.rows_imagined == [2]


def test_a_masked_reset_leaves_the_other_rows_where_they_were():
    free, reset = (imagined(3, world_model=FakeWorldModel(noise=0.1, mix=0.1)) for _ in range(2))
    for env in (free, reset):
        env.reset(seed=5)
        env.step(push(env, 0.3))
    reset.reset(options={"reset_mask": np.array([False, True, False])})
    left, right = (env.step(push(env, 0.3))[0]["image"] for env in (free, reset))
    assert np.array_equal(left[[0, 2]], right[[0, 2]])
    assert not np.array_equal(left[1], right[1])


def rollout(env: ImaginedVectorEnv, seeds: list[int], steps: int = 6) -> np.ndarray:
    """Play random actions that belong to a row's seed; return pictures (steps, n, H, W, 3)."""
    env.reset(seed=seeds)
    actions = np.stack(
        [
            np.random.default_rng(s).uniform(-1, 1, (steps, *env.action_space.shape[1:]))
            for s in seeds
        ],
        1,
    )
    return np.stack([env.step(action)[0]["image"] for action in actions])


def noisy(num_envs: int, **kwargs) -> ImaginedVectorEnv:
    model = FakeWorldModel(noise=0.1, mix=0.3)
    kwargs = {"success": FakeSuccess(threshold=0.5), "horizon": 7} | kwargs
    return imagined(num_envs, world_model=model, chunk=3, **kwargs)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_deterministic_rows_are_the_same_bits_in_any_batch(mode):
    def play(seeds: list[int]) -> np.ndarray:
        return rollout(noisy(len(seeds), deterministic=True, autoreset_mode=mode), seeds)

    everyone = play(list(range(16)))
    assert np.array_equal(play([4, 9, 2]), everyone[:, [4, 9, 2]])
    assert np.array_equal(play([11]), everyone[:, [11]])


def test_deterministic_memories_are_the_same_bits_in_any_batch():
    few, many = (noisy(n, deterministic=True, horizon=64) for n in (2, 16))
    rollout(few, [7, 3], 4)
    rollout(many, list(range(16)), 4)
    rows = torch.tensor([7, 3])
    assert torch.equal(few._futures[0].memory.recent, many._futures[0].memory.take(rows).recent)
    assert torch.equal(few._futures[0].features, many._futures[0].features[rows])


@pytest.fixture(scope="module", params=["nano", "nano-object"])
def networks(request) -> dict:
    """Make networks, large enough for batches to round differently; their weights are random."""
    torch.manual_seed(0)
    model = WorldModel(PRESETS[request.param])
    c = model.config
    shape = {"channels": c.channels, "side": c.side, "vector": c.vector + c.body_size}
    success = SuccessClassifier(SuccessConfig(**shape, threshold=2.0))
    for parameter in [*model.parameters(), *success.parameters()]:
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # nothing starts at zero
    return {"world_model": model, "success": success}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_real_networks_are_the_same_bits_in_any_batch_and_on_any_threads(networks, dtype, threads):
    def play(seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
        options = {"starts": fake_pool(image_size=64), "dtype": dtype, "chunk": 2, **networks}
        env = imagined(len(seeds), deterministic=True, **options)
        return rollout(env, seeds, 2).swapaxes(0, 1), env._futures[0].features.numpy()

    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        everyone = play(list(range(16)))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        for few in ([4, 9, 2], [11]):
            for came, wanted in zip(play(few), everyone, strict=True):
                assert np.array_equal(came, wanted[few])
    finally:
        torch.set_num_threads(used)


@pytest.mark.parametrize("rows", [1, 5])
def test_deterministic_calls_are_of_one_row(rows):
    env = noisy(rows, deterministic=True, success=FakeSuccess(threshold=2.0))
    rollout(env, list(range(rows)), 1)
    assert env.world_model.rows_imagined == [1] * rows


def doubt(env: ImaginedVectorEnv, *values: float) -> tuple:
    """Step with second action values, which are the fake world's uncertainty, one row a value."""
    actions = np.zeros(env.action_space.shape, np.float32)
    actions[..., 1] = np.reshape(values, (env.num_envs, -1))
    return env.step(actions)


def test_uncertainty_adds_up_over_an_episode():
    env = imagined(2, chunk=2, horizon=4, autoreset_mode="SameStep")
    assert env.reset(seed=0)[1]["uncertainty"].tolist() == [0, 0]
    assert doubt(env, 0.25, 0.5, 0.5, 0)[-1]["uncertainty"].tolist() == [0.75, 0.5]
    state = env.get_state()
    info = doubt(env, 0.5, 0.5, 0.5, 1)[-1]
    assert info["final_info"]["uncertainty"].tolist() == [1.75, 2]
    assert info["uncertainty"].tolist() == [0, 0]
    assert env.set_state(state)[1]["uncertainty"].tolist() == [0.75, 0.5]


def test_a_step_too_uncertain_is_the_last_and_no_success():
    env = imagined(3, success=BRIGHT_AT_7, chunk=2, max_uncertainty=0.5, return_frames=True)
    start_at(env, 0, 0, 0)
    actions = np.zeros((3, 2, 7), np.float32)
    actions[:, :, 1] = [[0.5, 0], [0.5, 0.25], [0.75, 0]]
    _, _, terminated, truncated, info = env.step(actions)
    assert info["uncertainty"].tolist() == [0.5, 0.75, 0.75]
    assert info["played"].tolist() == [2, 2, 1]
    assert truncated.tolist() == [False, True, True] and not terminated.any()


def test_success_counts_up_to_the_limit_of_uncertainty_and_not_beyond_it():
    bright = FakeSuccess(threshold=0.4)  # start 0 is 100 / 255 = 0.392, and one push adds 0.05
    env = imagined(3, success=bright, chunk=2, max_uncertainty=0.5)
    start_at(env, 0, 0, 0)
    actions = np.zeros((3, 2, 7), np.float32)
    actions[:, :, 0] = [[1, 0], [1, 0], [0, 1]]
    actions[:, :, 1] = [[0.5, 0.5], [0.75, 0], [0, 0]]
    _, reward, terminated, truncated, info = env.step(actions)
    assert info["played"].tolist() == [1, 1, 2] and info["uncertainty"].tolist() == [0.5, 0.75, 0]
    assert reward.tolist() == [1, 0, 1] and info["success"].tolist() == [True, False, True]
    assert terminated.tolist() == [True, False, True] and truncated.tolist() == [False, True, False]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1", True])
def test_limits_of_uncertainty_that_are_none_are_refused(limit):
    with pytest.raises(ValueError, match="max_uncertainty must be a number above 0, or None"):
        imagined(max_uncertainty=limit)


def test_a_limit_on_uncertainty_needs_a_world_model_that_can_be_uncertain():
    alone = FakeWorldModel()
    alone.certain = True
    with pytest.raises(ValueError, match="needs a world model with several members"):
        imagined(world_model=alone, max_uncertainty=1.0)
    imagined(world_model=alone)


SEEN_BY_ALL = {"world_model": FakeMembers(), "success": FakeSuccess(0.42), "unanimous": True}
# Start 0 is 0.392, and a push adds 0.05: what is shown, and what each of two members sees. Shown is
# a success after 1 and 4 steps, member 0 saw one after the first, and member 1 after the third.
THREE_FUTURES = np.array([[1, -1, 0, 1], [1, -1, 0, 0], [0, 0, 1, -1]])


def three_futures(*rows: int) -> np.ndarray:
    """Actions (n, 4, 7) of n rows, each of which begins with that column of THREE_FUTURES."""
    actions = np.zeros((len(rows), 4, 7), np.float32)
    actions[..., [0, 2, 3]] = np.stack([np.roll(THREE_FUTURES.T, -row, axis=0) for row in rows])
    return actions


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_unanimous_success_waits_until_every_member_has_seen_one(chunk, deterministic):
    for unanimous, steps in ((False, 1), (True, 4)):
        options = {**SEEN_BY_ALL, "unanimous": unanimous, "deterministic": deterministic}
        env = imagined(1, **options, chunk=chunk, autoreset_mode="disabled", return_frames=True)
        start_at(env, 0)
        for at in range(0, steps, chunk):
            info = env.step(three_futures(0)[:, at : at + chunk])[-1]
        assert info["success"].tolist() == [True] and info["elapsed_steps"].tolist() == [steps]
        shown = info["frames"][0, info["frames_mask"][0]][-1, 0, 0, 0]
        assert shown == 113  # what is shown stays the mean: 112.75


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_what_one_does_not_see_is_no_unanimous_success(missing):
    env = imagined(1, **SEEN_BY_ALL, chunk=4)
    start_at(env, 0)
    actions = three_futures(0)
    actions[..., [0, 2, 3][missing]] = 0
    assert env.step(actions)[-1]["success"].tolist() == [False]


def test_a_member_must_see_the_success_hold_as_well():
    success = FakeSuccess(0.42, hold_k=2, hold_n=3)
    seen = []
    for last in (0, 1):  # of the third step of member 1
        env = imagined(1, **SEEN_BY_ALL | {"success": success}, chunk=4)
        start_at(env, 0)
        actions = np.zeros((1, 4, 7), np.float32)
        actions[0, 0, [0, 2, 3]] = 1
        actions[0, 1, 3], actions[0, 2, 3] = -1, last
        info = env.step(actions)[-1]
        seen.append((info["success"].tolist(), info["played"].tolist()))
    assert seen == [([False], [4]), ([True], [3])]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_what_members_saw_in_one_episode_does_not_count_for_the_next(mode):
    env = imagined(2, **SEEN_BY_ALL, starts=fake_pool(1), horizon=3, autoreset_mode=mode)
    env.reset(seed=0)
    actions, last = three_futures(0, 0), three_futures(3, 3)[:, 0]  # which only the mean sees
    for step in range(3):
        env.step(actions[:, step])
    if mode == "NextStep":
        env.step(actions[:, 0])  # which resets
    elif mode == "Disabled":
        env.reset(options={"reset_mask": np.array([True, True])})
    info = env.step(last)[-1]
    assert info["played"].tolist() == [1, 1] and info["success"].tolist() == [False, False]


def test_without_members_success_is_unanimous():
    env = imagined(success=FakeSuccess(0.42), unanimous=True)
    assert not env.unanimous
    start_at(env, 0)
    assert env.step(push(env, 1))[-1]["success"].tolist() == [True]


def test_a_world_model_of_other_actions_is_refused():
    wide = FakeWorldModel()
    wide.config.action_dim = 8
    with pytest.raises(ValueError, match="takes actions of 8 values, and those of Lift have 7"):
        imagined(world_model=wide)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_a_reset_within_inference_mode_is_played_on_outside_of_it(output):
    env = imagined(2, output=output)
    with torch.inference_mode():
        start_at(env, 0, 4)
    assert level(env.step(push(env, 1))[0]) == [113, 117]
    with torch.inference_mode():
        assert level(env.step(push(env, 1))[0]) == [126, 130]  # 125.5 and 129.5
    assert level(start_at(env, 1, 2)) == [101, 102]


def test_without_it_rows_agree_to_rounding():
    few, many = (rollout(noisy(n), list(range(n))).astype(int) for n in (2, 16))
    assert abs(few - many[:, :2]).max() <= 1


def test_deterministic_and_batched_play_agree_to_rounding():
    one, all_ = (rollout(noisy(5, deterministic=d), [1, 2, 3, 4, 5]).astype(int) for d in (1, 0))
    assert abs(one - all_).max() <= 1


def test_equal_seeds_give_equal_rollouts_and_others_do_not():
    first, again, other = (rollout(noisy(2), seeds) for seeds in ([1, 2], [1, 2], [3, 2]))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:, 0], other[:, 0])


def test_rows_that_share_a_start_do_not_share_their_noise():
    env = imagined(2, world_model=FakeWorldModel(noise=0.1))
    start_at(env, 1, 1)
    image = env.step(push(env, 0))[0]["image"]
    assert not np.array_equal(image[0], image[1])


def test_the_next_episode_and_the_next_step_draw_other_noise():
    env = imagined(1, world_model=FakeWorldModel(noise=0.1))
    images = []
    for seed in (3, None):
        env.reset(seed=seed, options={"start": [0]})
        images += [env.step(push(env, 0))[0]["image"].astype(int) for _ in range(2)]
    first, second = images[0] - 100, images[1] - images[0]
    assert abs(first - second).max() > 5  # rounding alone makes 1
    assert not np.array_equal(images[0], images[2])


def test_pictures_begin_an_episode():
    success = FakeSuccess()
    env = imagined(2, success=success)
    frames = np.zeros((2, 3, 8, 8, 3), np.uint8)
    frames[0] = np.array([10, 20, 30])[:, None, None, None]
    frames[1] = np.array([60, 50, 40])[:, None, None, None]
    options = {"frames": frames, "actions": np.zeros((2, 2, 7))}
    obs, info = env.reset(seed=0, options=options)
    assert level(obs) == [30, 40] and info["start"].tolist() == [-1, -1]
    remembered = env.world_model.decode(env._futures[0].memory.recent)[..., 0, 0, 0]
    assert remembered.tolist() == [[10, 10, 20, 30], [60, 60, 50, 40]]
    assert level(env.step(push(env, 1))[0]) == [43, 53]
    window = success.windows[-1][0, :, 0] * 127.5 + 127.5
    expected = [10.0] * 5 + [20.0, 30.0, 42.75]
    torch.testing.assert_close(window, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_long_pasts_keep_their_anchor_and_their_last_frames():
    env = imagined()
    frames = np.arange(12, dtype=np.uint8)[None, :, None, None, None] * np.ones(
        (1, 12, 8, 8, 3), np.uint8
    )
    assert level(env.reset(options={"frames": frames})[0]) == [11]
    assert env.world_model.decode(env._futures[0].memory.anchor[:, None])[0, 0, 0, 0, 0] == 0
    features = env._futures[0].features[0, :, 0] * 127.5 + 127.5
    torch.testing.assert_close(features, torch.arange(5.0, 12.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "actions"),
    [
        (np.zeros((1, 2, 8, 8, 3), np.uint8), None),
        (np.zeros((2, 2, 9, 8, 3), np.uint8), None),
        (np.zeros((2, 0, 8, 8, 3), np.uint8), None),
        (np.zeros((2, 8, 8, 3), np.uint8), None),
        (np.zeros((2, 2, 8, 8, 3), np.float32), None),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), np.zeros((2, 2, 7))),
    ],
)
def test_pictures_of_other_shapes_or_dtypes_are_refused(frames, actions):
    with pytest.raises(ValueError, match="frames|Actions"):
        imagined(2).reset(options={"frames": frames, "actions": actions})


def test_bfloat16_stays_close_and_keeps_float32_memories():
    full, half = (
        rollout(noisy(3, dtype=d), [1, 2, 3]).astype(int) for d in ("float32", "bfloat16")
    )
    assert abs(full[0] - half[0]).max() <= 3
    env = noisy(1, dtype="bfloat16")
    rollout(env, [0], 2)
    assert env._futures[0].memory.recent.dtype == env._futures[0].features.dtype == torch.float32


def test_torch_output_can_be_used_in_place_and_in_autograd():
    env = imagined(2, output="torch")
    image = env.reset(seed=0)[0]["image"]
    image.add_(1)
    weight = torch.ones(1, requires_grad=True)
    (env.step(torch.zeros(2, 7))[0]["image"].float() * weight).sum().backward()
    assert weight.grad > 0


def test_models_run_in_evaluation_mode_without_gradients():
    env = imagined(world_model=FakeWorldModel(mix=0.1).train())
    env.reset(seed=0)
    env.step(push(env, 1))
    assert not env.world_model.training and not env._futures[0].memory.recent.requires_grad


@pytest.mark.parametrize(
    ("keyword", "value"), [("dtype", "float16"), ("sampling_steps", 1), ("horizn", 3)]
)
def test_bad_keywords_are_named(keyword, value):
    with pytest.raises((ValueError, TypeError), match=keyword):
        imagined(**{keyword: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device='cuda' needs a GPU .* leave device out"):
        ImaginedVectorEnv("Lift", 1, device="cuda")


def test_models_that_do_not_fit_the_starts_or_the_chunk_are_refused():
    with pytest.raises(ValueError, match="8 x 8 pictures and the starts are 16 x 16"):
        imagined(starts=fake_pool(image_size=16))
    model = FakeWorldModel()
    model.config.max_chunk = 4
    with pytest.raises(ValueError, match="at most 4 steps"):
        imagined(world_model=model, chunk=5)


def test_named_models_are_loaded_once_and_missing_ones_are_named(tmp_path):
    shape = SuccessConfig(channels=8, side=2, vector=160)  # 192 numbers, as the fake's latents
    SuccessClassifier(shape).save_pretrained(tmp_path)
    first, second = (imagined(success=tmp_path).success for _ in range(2))
    assert first is second and not first.training
    _load_success_classifier.cache_clear()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        imagined(success="nowhere")


def test_a_model_that_is_written_anew_is_loaded_anew(tmp_path):
    config = SuccessConfig(channels=8, side=2, vector=160)
    loaded = []
    for threshold in (0.25, 0.75):
        SuccessClassifier(replace(config, threshold=threshold)).save_pretrained(tmp_path)
        loaded.append(imagined(success=tmp_path).success.threshold)
    assert loaded == [0.25, 0.75]


def test_a_world_model_without_its_classifier_is_refused():
    with pytest.raises(ValueError, match="got world_model without success. Name both, or neither"):
        imagined(success=None)
    with pytest.raises(ValueError, match="got success without world_model"):
        imagined(world_model=None)


def test_models_that_were_not_trained_together_are_refused():
    other = SuccessClassifier(SuccessConfig(channels=8, side=2, vector=161))
    with pytest.raises(ValueError, match="hold 192 numbers and the success classifier reads 193"):
        imagined(success=other)


def test_closing_lets_go_of_the_models():
    env = imagined()
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.world_model is None and not env._futures


def random_models(noise: float) -> dict:
    """Real networks with random weights; nothing is ever a success."""
    generator = torch.Generator().manual_seed(0)
    shape = {"outer": 8, "width": 8, "vector": 16, "draw": (8, 8, 8), "embed": 16}
    model = WorldModel(WorldModelConfig(16, body=("x",), body_size=3, noise=noise, **shape))
    success = SuccessClassifier(
        SuccessConfig(channels=8, side=2, vector=19, width=16, features=5, threshold=2.0)
    )
    for weights in (*model.parameters(), *success.parameters()):
        torch.nn.init.normal_(weights, std=0.2, generator=generator)
    return {"world_model": model, "success": success, "starts": fake_pool(image_size=16)}


def random_actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_begin_with_what_the_robot_measures_at_their_start(deterministic):
    """Of a body of three, x; at starts 0 to 4 it is 10 to 14, and not known at start 3."""
    models = random_models(noise=0.0)
    model = models["world_model"]
    model.config = replace(model.config, robot=("x",))
    model.body_mean.fill_(10.0), model.body_std.fill_(0.5)
    x = np.arange(10, 15, dtype=np.float32)[:, None]
    x[3] = np.nan
    models["starts"] = replace(models["starts"], low_dim={"x": x})
    env = imagined(6, **models, deterministic=deterministic)
    starts = np.array([4, 0, 3, 0, 1, 2])
    env.reset(seed=0, options={"start": starts})
    found = env._futures[0].memory.state[:, -3:]
    with torch.inference_mode():
        read = model.begin(torch.from_numpy(models["starts"].frames[:, None])).state[:, -3:]
    torch.testing.assert_close(found[:, 1:], read[starts][:, 1:])  # these are always read
    expected = [8.0, 0.0, read[3, 0].item(), 0.0, 2.0, 4.0]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    pictures = models["starts"].frames[starts][:, None]
    env.reset(options={"frames": pictures})  # nothing is known of these
    torch.testing.assert_close(env._futures[0].memory.state[:, -3:], read[starts])


def test_starts_without_what_the_robot_must_measure_are_refused():
    models = random_models(noise=0.0)
    models["world_model"].config = replace(models["world_model"].config, robot=("x",))
    models["starts"] = replace(models["starts"], low_dim={"y": np.zeros((5, 1), np.float32)})
    with pytest.raises(ValueError, match=r"The pool of starts holds no x; it has \['y'\]"):
        imagined(1, **models)


@torch.inference_mode()
def test_a_real_model_is_played_and_watched_as_it_would_be_by_hand():
    models, actions = random_models(noise=0.5), random_actions(2, 3, 4, 7)
    env = imagined(2, **models, chunk=4, return_frames=True)
    image = start_at(env, 2, 0, seed=7)["image"]
    model, success = models["world_model"], models["success"]
    first = torch.from_numpy(image)[:, None]
    memory, past, uncertainty = model.begin(first), [model.encode(first)], 0.0
    for step, block in enumerate(actions.swapaxes(0, 1)):
        info = env.step(block)[-1]
        keys = env.seeds, np.zeros(2, np.int64), np.full(2, 4 * step)
        noise = row_noise(*keys, (4, 3))
        memory, latents, apart = model.imagine(memory, torch.from_numpy(block), noise)
        past.append(latents)
        expected = model.decode(latents).numpy().astype(int)
        assert abs(info["frames"] - expected).max() <= 1 and expected.std() > 10
        probability = success.watch(torch.cat(past, 1))[:, -1]
        np.testing.assert_allclose(info["success_probability"], probability, rtol=1e-4)
        uncertainty += apart.sum(1)
        np.testing.assert_allclose(info["uncertainty"], uncertainty, rtol=1e-4)
        assert apart.min() > 0


def test_a_compiled_real_model_plays_the_same(monkeypatch):
    """Without the compiler's back end: what is traced, in whole graphs."""
    compiled = partial(torch.nn.Module.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compiled(part))
    shown = []
    for compile in (False, True):
        env = imagined(2, **random_models(noise=0.5), chunk=2, compile=compile)
        start_at(env, 2, 0)
        shown.append(env.step(random_actions(2, 2, 7))[0]["image"])
    assert np.array_equal(*shown) and shown[0].std() > 10


def test_a_real_model_plays_chunks_of_any_length_alike():
    actions, shown = random_actions(8, 2, 7), []
    for chunk in (1, 2, 8):
        env = imagined(2, **random_models(noise=0.0), chunk=chunk)
        start_at(env, 2, 0)
        for at in range(0, 8, chunk):
            image = env.step(actions[at : at + chunk].swapaxes(0, 1).copy())[0]["image"]
        shown.append(image.astype(int))
    assert abs(shown[0] - shown[1]).max() <= 1 and abs(shown[0] - shown[2]).max() <= 1


@torch.inference_mode()
def test_a_long_past_is_embedded_knowing_its_first_picture():
    models = random_models(noise=0.0)
    env = imagined(2, **models)
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 16, 3)).astype(np.uint8)
    env.reset(options={"frames": frames})
    latents = models["world_model"].encode(torch.from_numpy(frames))
    expected = models["success"].embed(latents)[:, -7:]
    torch.testing.assert_close(env._futures[0].features, expected, rtol=1e-4, atol=1e-5)


class Slow(torch.nn.Module):
    """A success where the sine of twice x, on the mean of four frames, was above 0 twice of 3."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(window=4, latent_size=latent_size)
        self.threshold, self.hold_k, self.hold_n = 0.5, 2, 3

    def embed(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[..., -3:-2]

    def probability(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((2 * features.unfold(1, 4, 1).mean((2, 3))).sin())


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("chunk", [2, 8])
def test_members_of_a_real_model_see_what_each_sees_in_a_world_of_its_own(chunk, deterministic):
    models = random_models(noise=0.5)
    model = models["world_model"]
    generator = torch.Generator().manual_seed(2)
    for weights in model.transition.motion.parameters():  # small: no row may hang on rounding
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    models["success"] = Slow(model.config.latent_size)
    actions = random_actions(6, 16, 7)

    def seen(world_model: WorldModel, unanimous: bool = False) -> np.ndarray:
        options = {**models, "world_model": world_model, "unanimous": unanimous}
        options |= {"deterministic": deterministic, "ignore_terminations": True}
        env = imagined(6, **options, chunk=chunk, horizon=16, return_frames=True)
        env.reset(seed=0, options={"start": np.array([0, 1, 2, 3, 4, 0])})
        blocks = np.split(actions, 16 // chunk, axis=1)
        return np.concatenate([env.step(block)[-1]["frames_success"] for block in blocks], axis=1)

    members = [seen(alone(model, member)) for member in range(model.config.members)]
    had = np.logical_or.accumulate(members, axis=2).all(0)
    shown = seen(model)
    assert np.array_equal(seen(model, unanimous=True), shown & had)
    assert 20 < (shown & had).sum() < shown.sum() - 10  # of 96
    assert len(set(map(tuple, shown & had))) == 6  # no two rows alike


def test_cut_by_hand():
    success = np.array([[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    steps = np.array([4, 3, 4, 2])
    played, counted = cut(success, steps, ignore_terminations=False)
    assert played.tolist() == [2, 3, 4, 1]
    assert counted.astype(int).tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]
    played, counted = cut(success, steps, ignore_terminations=True)
    assert played.tolist() == [4, 3, 4, 2]
    assert counted.astype(int).tolist() == [[0, 1, 0, 1], [0] * 4, [0] * 4, [1, 0, 0, 0]]

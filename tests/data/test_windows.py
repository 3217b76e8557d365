"""Windows: what lies in them, how they are drawn, which episodes are held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.data.windows import Windows, deal, holdout_episodes


def pixels(frames: torch.Tensor) -> list:
    return frames[..., 0, 0, 0].tolist()


@pytest.fixture
def two(make_episode):
    """Frames 0..3 with 3 actions (0, .1, .2), and frames 10..12 with 2 actions (1, 1.1).

    What is measured at frame i of each: hand (i, -i) and grip 5 + i, and 10 more in the second.
    """
    return [
        make_episode(0, t=3, source="play", low_dim=measured(3, 0)),
        make_episode(1, t=2, success=(1,), low_dim=measured(2, 10)),
    ]


def measured(t: int, more: int) -> dict[str, np.ndarray]:
    i = np.arange(t + 1, dtype=np.float32)[:, None]
    return {"grip": more + 5 + i, "hand": more + np.concatenate([i, -i], 1)}


def test_every_step_of_every_episode_is_a_window(two):
    windows = Windows(two)
    assert windows.episode.tolist() == [0, 0, 0, 1, 1]
    assert windows.time.tolist() == [0, 1, 2, 0, 1]


def test_window_at_the_first_step(two):
    batch = Windows(two, memory=4, block=2).batch([0])
    assert pixels(batch["anchor"]) == [0]
    assert pixels(batch["memory"]) == [[0, 0, 0, 0]]
    assert pixels(batch["future"]) == [[1, 2]]
    assert batch["actions"][0, :, 6].tolist() == pytest.approx([0.0, 0.1])
    assert batch["valid"].tolist() == [[True, True]]


def test_window_at_the_last_step_is_padded(two):
    batch = Windows(two, memory=2, block=3).batch([4])
    assert pixels(batch["anchor"]) == [10]
    assert pixels(batch["memory"]) == [[10, 11]]
    assert pixels(batch["future"]) == [[12, 12, 12]]
    assert batch["actions"][0, :, 0].tolist() == pytest.approx([1.1, 0.0, 0.0])
    assert batch["valid"].tolist() == [[True, False, False]]


def test_shapes_and_dtypes(two):
    batch = Windows(two).batch(np.array([0, 3]))
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "anchor": ((2, 4, 4, 3), torch.uint8),
        "memory": ((2, 4, 4, 4, 3), torch.uint8),
        "future": ((2, 8, 4, 4, 3), torch.uint8),
        "actions": ((2, 8, 7), torch.float32),
        "valid": ((2, 8), torch.bool),
        "body": ((2, 9, 0), torch.float32),
    }


def test_a_body_is_what_is_measured_at_a_step_and_after_it(two):
    """Of the last window, the last row is repeated."""
    windows = Windows(two, block=2, body=("grip",))
    body = windows.batch([1, 4])["body"]
    assert body.tolist() == [[[6], [7], [8]], [[16], [17], [17]]] and body.dtype == torch.float32


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (("grip", "hand"), [16, 11, 9]),
        (("hand", "grip"), [11, 9, 16]),
        (("hand[:1]", "grip", "hand[1:2]"), [11, 16, 9]),
        (("hand[1:]",), [9]),
        (("hand[:]",), [11, 9]),
    ],
)
def test_a_body_holds_its_keys_side_by_side_in_their_order(two, keys, row):
    assert Windows(two, body=keys).batch([4])["body"][0, 0].tolist() == row


def test_the_body_lasts_as_long_as_the_window(two):
    windows = Windows(two, block=1, body=("grip",))
    assert windows.lasting(3).batch([0])["body"].flatten().tolist() == [5, 6, 7, 8]


def test_a_body_that_an_episode_does_not_hold_is_refused(two, make_episode):
    known = r"An episode of 'play' holds no feet, eyes; it has \['grip', 'hand'\]"
    with pytest.raises(ValueError, match=known):
        Windows(two, body=("grip", "feet", "eyes"))
    with pytest.raises(ValueError, match="An episode of 'blind' holds no grip.*pictures alone"):
        Windows([*two, make_episode(2, source="blind")], body=("grip",))


@pytest.mark.parametrize("name", ["hand[1]", "hand[a:]", "hand[0:2:1]", "hand[-1:]"])
def test_a_part_that_is_no_slice_of_whole_numbers_is_refused(two, name):
    with pytest.raises(ValueError, match=r'such as "object\[:3\]"; got \[') as error:
        Windows(two, body=(name,))
    assert name[4:] in str(error.value)


def test_weights_draw_a_source_more_often(two):
    # 3 windows of play at weight 1, 2 of demonstrations at weight 3: 3 to 6.
    windows = Windows(two, weights={"demonstrations": 3.0})
    drawn = windows.sample(9000, torch.Generator().manual_seed(0))
    assert windows.episode[drawn].float().mean().item() == pytest.approx(6 / 9, abs=0.02)


def test_weight_zero_is_never_drawn(two):
    windows = Windows(two, weights={"play": 0.0})
    assert windows.episode[windows.sample(500)].unique().tolist() == [1]


def test_drawing_repeats_with_the_generator(two):
    windows = Windows(two)
    a, b = (windows.sample(20, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_reweight_gives_each_window_its_own_chance(two):
    windows = Windows(two).reweight(torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]))
    assert windows.sample(200).unique().tolist() == [1, 4]


def test_windows_may_last_longer_and_are_otherwise_the_same(two):
    windows = Windows(two, memory=2, block=1, weights={"play": 0.0})
    longer = windows.lasting(2)
    assert pixels(longer.batch([3])["future"]) == [[11, 12]]
    assert pixels(longer.batch([3])["memory"]) == [[10, 10]]
    assert torch.equal(longer.weights, windows.weights)
    assert pixels(windows.batch([3])["future"]) == [[11]]


def test_bad_weights_are_refused(two):
    with pytest.raises(ValueError, match=r"\['expert'\] that no episode has; known.*play"):
        Windows(two, weights={"expert": 1.0})
    with pytest.raises(ValueError, match="not all zero"):
        Windows(two, weights={"play": 0.0, "demonstrations": 0.0})


def test_holdout_takes_the_rounded_share_of_each_source():
    sources = ["a"] * 10 + ["b"] * 4 + ["c"]
    held = holdout_episodes(sources, 0.2, seed=0)
    assert [sources[i] for i in held] == [
        "a",
        "a",
        "b",
    ]  # round(2.0), round(0.8), never the only one
    assert held == holdout_episodes(sources, 0.2, seed=0)


def test_holdout_of_a_source_does_not_depend_on_the_others():
    alone = holdout_episodes(["play"] * 40, 0.2, seed=3)
    beside = holdout_episodes(["demonstrations"] * 7 + ["play"] * 40, 0.2, seed=3)
    assert [i - 7 for i in beside if i >= 7] == alone
    assert alone != holdout_episodes(["rollouts"] * 40, 0.2, seed=3)


def test_holdout_of_few_episodes_leaves_two_to_compare():
    assert len(holdout_episodes(["play"] * 18, 0.08, seed=0)) == 2  # 1.44
    assert len(holdout_episodes(["play"] * 2, 0.08, seed=0)) == 1
    assert len(holdout_episodes(["play"] * 9 + ["rollouts"] * 9, 0.08, seed=0)) == 2


def test_holdout_of_single_episodes_is_refused():
    with pytest.raises(ValueError, match="none has two episodes"):
        holdout_episodes(["a", "b"], 0.5, seed=0)


def test_folds_are_as_even_as_can_be_of_every_source():
    sources = ["play"] * 7 + ["demonstrations"] * 3 + ["play"] * 2
    fold = deal(sources, 4, seed=0)
    assert fold.dtype == np.int64 and np.bincount(fold).tolist() == [3, 3, 3, 3]
    named = [sorted(sources[i] for i in np.flatnonzero(fold == f)) for f in range(4)]
    assert sorted(named) == [["demonstrations"] + ["play"] * 2] * 3 + [["play"] * 3]
    assert np.array_equal(deal(sources, 4, seed=0), fold)
    assert not np.array_equal(deal(sources, 4, seed=1), fold)


def test_there_are_no_more_folds_than_episodes():
    assert sorted(deal(["a", "b", "a"], 5, seed=0)) == [0, 1, 2]


@pytest.mark.parametrize(("n", "folds"), [(1, 5), (4, 1)])
def test_one_fold_is_refused(n, folds):
    with pytest.raises(ValueError, match=f"at least 2 folds and 2 episodes; got 1 of {n}"):
        deal(["a"] * n, folds, seed=0)


def test_latents_are_gathered_in_the_place_of_pictures(two):
    """Those of frame i are (100 + i, -i), in the second episode (200 + i, -i)."""
    latents = [
        torch.stack([more + torch.arange(4.0)[:n], -torch.arange(4.0)[:n]], 1)
        for more, n in ((100, 4), (200, 3))
    ]
    batch = Windows(two, memory=2, block=2, latents=latents).batch([1, 4])
    assert batch["anchor"].tolist() == [[100, 0], [200, 0]]
    assert batch["memory"][..., 0].tolist() == [[100, 101], [200, 201]]
    assert batch["future"].tolist() == [[[102, -2], [103, -3]], [[202, -2], [202, -2]]]
    assert batch["actions"][0, :, 6].tolist() == pytest.approx([0.1, 0.2])


def test_pictures_of_two_sizes_are_refused(two):
    big = two[0].frames.repeat(2, axis=1).repeat(2, axis=2)
    other = type(two[0])(big, two[0].actions, two[0].success)
    with pytest.raises(ValueError, match=r"one size; got \[\(4, 4, 3\), \(8, 8, 3\)\]"):
        Windows([*two, other])


def test_no_episodes_is_refused():
    with pytest.raises(ValueError, match="No episodes"):
        Windows([])

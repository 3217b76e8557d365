"""Playing groups and evaluations: equal starts, frozen rows, masks, counts."""

from __future__ import annotations

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.base import Act
from tests.fakes import ScriptedEnv
from tests.trainers.toy import ForeignEnv, ToyEnv, ToyPolicy
from trainers.rollout import FOREIGN_STARTS, collect, count_starts, draw_seeds, evaluate, join


def certain(action_values: list[float]) -> ToyPolicy:
    """Always plays these first numbers (from -1, -0.5, 0, 0.5, 1), one a step of the chunk."""
    policy = ToyPolicy(chunk=len(action_values))
    for step, value in enumerate(action_values):
        policy.table.data[:, step * 7, round(value * 2) + 2] = 100.0
    return policy


def test_members_of_a_group_share_a_start_but_no_seed():
    env = ToyEnv(6)
    collect(ToyPolicy(), env, starts=[3, 5], group_size=3, seed=1)
    seeds, starts = env.seen[0]
    assert starts == (3, 3, 3, 5, 5, 5)
    assert len(set(seeds)) == 6


def test_foreign_environments_get_repeated_seeds():
    env = SyncVectorEnv([ForeignEnv] * 4)
    batch = collect(certain([0.5]), env, starts=[7, 9], group_size=2)
    assert batch.images[0, :, 0, 0, 0].tolist() == [7, 7, 9, 9]  # it shows its seed
    assert batch.success.tolist() == [True] * 4
    assert count_starts(env) == FOREIGN_STARTS


def test_a_pool_tells_how_many_starts_there_are():
    assert count_starts(ToyEnv(2, starts=8)) == 8


def test_collect_notes_what_was_played():
    # start 1 wants +: hit by the second action of the first chunk; start 0 wants -: never
    batch = collect(certain([0.0, 0.5]), ToyEnv(2, horizon=4), starts=[0, 1], group_size=1)
    assert batch.success.tolist() == [False, True]
    assert batch.finish_step.tolist() == [4, 2]
    assert batch.active.tolist() == [[True, True], [True, False]]
    assert batch.played.tolist() == [[2, 2], [2, 0]]
    assert batch.instructions == ["match the sign"] * 2
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (2, 2, 8, 8, 3)


def test_rows_that_are_done_are_not_decided_for():
    asked, policy = [], certain([0.0, 0.5])
    act = policy.act

    def watched(obs: dict, instructions: list[str], **options) -> Act:
        asked.append(obs["image"][:, 0, 0, 0].tolist())
        return act(obs, instructions, **options)

    policy.act = watched
    # odd starts (white) are hit in the first chunk, even ones (black) never
    batch = collect(policy, ToyEnv(3, horizon=4), starts=[0, 1, 2], group_size=1)
    assert asked == [[0, 255, 0], [0, 0]]
    assert batch.sample.shape == (2, 3, 14)
    assert batch.sample[1, 1].tolist() == [0] * 14
    assert batch.sample[1, [0, 2]][:, [0, 7]].tolist() == [[2, 3]] * 2  # bins of 0.0 and of 0.5


def test_tokens_after_success_are_masked():
    # start 1 is done by the first action of the chunk: 7 of its 14 tokens count
    batch = collect(certain([0.5, 0.0]), ToyEnv(2, horizon=4), starts=[0, 1], group_size=1)
    mask = batch.token_mask(ToyPolicy().event_steps)
    assert mask.sum(-1).tolist() == [[14, 7], [14, 0]]
    assert mask[0, 1].tolist() == [True] * 7 + [False] * 7


def test_a_seed_repeats_a_batch_and_another_does_not():
    one, same, other = (
        collect(ToyPolicy(), ToyEnv(8), [0, 1], 4, seed=seed).sample for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one[0], other[0])


def test_our_worlds_play_the_contract():
    env = ScriptedEnv([1, 3, 99], autoreset_mode="Disabled", horizon=4, chunk=2)
    batch = collect(certain([0.0, 0.0]), env, starts=[0, 1, 2], group_size=1)
    assert batch.success.tolist() == [True, True, False]
    assert batch.finish_step.tolist() == [1, 3, 4]
    assert batch.played.tolist() == [[1, 2, 2], [0, 1, 2]]


def test_wrong_chunk_is_refused():
    with pytest.raises(ValueError, match="make it with chunk=1"):
        collect(ToyPolicy(chunk=1), ToyEnv(2), [0, 1], 1)


@pytest.mark.parametrize("play", [lambda *x: collect(*x, group_size=1), evaluate])
def test_a_world_that_resets_at_once_is_refused(play):
    env = ToyEnv(2)
    env.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match="make the environment with autoreset_mode='disabled'"):
        play(ToyPolicy(), env, [0, 1])


def test_a_world_that_plays_on_after_a_success_teaches_nothing():
    env = ToyEnv(2)
    env.ignore_terminations = True
    with pytest.raises(ValueError, match="make it without ignore_terminations"):
        collect(ToyPolicy(), env, [0, 1], 1)


def test_wrong_group_count_is_refused():
    with pytest.raises(ValueError, match="2 groups of 3 need 6 environments, got 4"):
        collect(ToyPolicy(), ToyEnv(4), [0, 1], 3)


def test_take_cuts_to_what_the_rows_played():
    batch = collect(certain([0.0, 0.5]), ToyEnv(2, horizon=4), starts=[0, 1], group_size=1)
    won = batch.take(torch.tensor([1]))
    assert won.images.shape[:2] == (1, 1) and won.success.tolist() == [True]


def test_join_fills_shorter_batches_with_inactive_decisions():
    batch = collect(certain([0.0, 0.5]), ToyEnv(2, horizon=4), starts=[0, 1], group_size=1)
    both = join([batch.take(torch.tensor([1])), batch])
    assert both.active.tolist() == [[True, True, True], [False, True, False]]
    assert both.success.tolist() == [True, False, True] and len(both.instructions) == 3


def test_evaluate_plays_every_start_once_in_order():
    env = ToyEnv(4, starts=10, horizon=4)
    result = evaluate(certain([0.0, 0.5]), env, [1, 0, 3, 5, 2, 7], progress=False)
    assert result.success.tolist() == [True, False, True, True, False, True]
    assert result.length.tolist() == [2, 4, 2, 2, 4, 2]


def test_a_last_wave_costs_no_extra_episodes():
    env = ToyEnv(4, starts=10)
    evaluate(certain([0.0, 0.5]), env, list(range(6)), progress=False)
    assert env.episodes == 6


def test_fewer_starts_than_rows_are_filled_up_and_not_counted():
    result = evaluate(certain([0.0, 0.5]), ToyEnv(4), [1], progress=False)
    assert result.success.tolist() == [True]


def test_evaluation_without_terminations_counts_any_success():
    env = ScriptedEnv([1, 99], autoreset_mode="Disabled", ignore_terminations=True, chunk=2)
    result = evaluate(certain([0.0, 0.0]), env, [0, 1], progress=False)
    assert result.success.tolist() == [True, False] and result.length.tolist() == [3, 3]


def test_seeds_are_a_function_of_the_words():
    assert draw_seeds(3, 1, 2) == draw_seeds(3, 1, 2) != draw_seeds(3, 2, 1)
    assert all(0 <= seed < 2**31 for seed in draw_seeds(100, 0))


def test_mixed_precision_is_for_the_policy_alone():
    env, seen = ToyEnv(2), []
    play = env.step
    env.step = lambda action: seen.append(torch.is_autocast_enabled("cpu")) or play(action)
    collect(ToyPolicy(), env, [0, 1], 1, dtype="bfloat16")
    evaluate(ToyPolicy(), env, [0, 1], dtype="bfloat16", progress=False)
    assert seen and not any(seen)

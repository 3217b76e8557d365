"""The figures of an audit against cases worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wm_gym.evaluation.audit import (
    STEPS,
    Pair,
    agree,
    drift,
    examples,
    kind,
    rates,
    read_pairs,
    report,
    summary,
    table,
    until,
    video_name,
    write_pairs,
)
from wm_gym.evaluation.statistics import wilson

NEVER = None
RATES = ("hallucinated_success_rate", "missed_success_rate", "paired_accuracy")


def pair(imagined, real, judged=NEVER, policy="base", start=0, probability=0.5) -> Pair:
    return Pair(policy, start, imagined, real, judged, probability)


# Four real failures: one hallucinated by the classifier, two by the dynamics, one seen as it is.
# Five real successes: one missed by the classifier, one by the dynamics, three seen as they are.
MIXED = [
    pair(30, NEVER, 28),
    pair(30, NEVER),
    pair(30, NEVER),
    pair(NEVER, NEVER, 28),
    pair(NEVER, 20),
    pair(NEVER, 20, 26),
    pair(30, 20),
    pair(30, 20, 26),
    pair(30, 20, 26),
]


def counts(found: dict, *names: str) -> list[tuple[int, int]]:
    return [(found[name]["successes"], found[name]["n"]) for name in names]


def test_a_perfect_world_is_never_wrong():
    found = summary([pair(25, 20, 25)] * 3 + [pair(NEVER, NEVER)] * 2)
    assert counts(found, *RATES) == [(0, 2), (0, 3), (5, 5)]
    assert counts(found, "imagined_success", "real_success") == [(3, 5), (3, 5)]
    assert (found["f1_imagined"], found["f1_real"]) == (1.0, 1.0)


def test_a_world_that_always_says_success_hallucinates_every_failure():
    found = summary([pair(1, 20, 25)] * 3 + [pair(1, NEVER)] * 2)
    assert counts(found, *RATES) == [(2, 2), (0, 3), (3, 5)]
    assert counts(found, "precision_imagined", "recall_imagined") == [(3, 5), (3, 3)]
    assert found["f1_imagined"] == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert counts(found, "precision_real", "recall_real") == [(3, 3), (3, 3)]


def test_a_world_that_never_says_success_misses_every_success():
    found = summary([pair(NEVER, 20, 25)] * 3 + [pair(NEVER, NEVER)] * 2)
    assert counts(found, *RATES) == [(0, 2), (3, 3), (2, 5)]
    assert (found["precision_imagined"], found["f1_imagined"]) == (None, 0.0)
    assert found["f1_real"] == 1.0


def test_errors_are_the_classifiers_where_it_errs_so_on_the_real_video():
    found = rates(MIXED)
    assert counts(found, *RATES) == [(3, 4), (2, 5), (4, 9)]
    shares = ("hallucinated_by_classifier", "hallucinated_by_dynamics")
    assert counts(found, *shares) == [(1, 4), (2, 4)]
    assert counts(found, "missed_by_classifier", "missed_by_dynamics") == [(1, 5), (1, 5)]


def test_precision_recall_and_f1_of_both_verdicts():
    found = summary(MIXED)
    # Imagined: 6 successes, 3 of them right, of 5 real ones. On real video: 5, 3 of them right.
    assert counts(found, "precision_imagined", "recall_imagined") == [(3, 6), (3, 5)]
    assert counts(found, "precision_real", "recall_real") == [(3, 5), (3, 5)]
    assert found["f1_imagined"] == pytest.approx(6 / 11)
    assert found["f1_real"] == pytest.approx(6 / 10)


def test_failures_are_counted_in_the_order_of_their_rules():
    named = [*["slipped"] * 2, "gripper_drift", None]
    found = report([pair(20, NEVER)._replace(failure=name) for name in named])
    assert list(found["failures"].items()) == [("gripper_drift", 1), ("slipped", 2)]
    assert "hallucinated successes: gripper drift 1, slipped 2." in table(found)


def tracks(gripper: list[float], thing: list[float], pairs: int = 4) -> np.ndarray:
    """Imagined things are so many millimetres aside at each step; the probe is 1 mm off in both."""
    found = np.zeros((3, pairs, 1 + len(gripper), 2, 3))
    found[1, :, 1:, 0, 0] = np.array(gripper) / 1000
    found[1, :, 1:, 1, 2] = np.array(thing) / 1000
    found[1:, ..., 1] += 0.001
    return found


def test_drift_is_the_median_distance_by_step():
    given = tracks([3, 4], [0, 9], pairs=3)
    given[1, 0, 1:, 0, 1] += 0.004  # one of the three: 5 mm and 5.66
    assert drift(given) == {
        "gripper": {"imagined": [3.0, 4.0], "real": [1.0, 1.0]},
        "object": {"imagined": [0.0, 9.0], "real": [1.0, 1.0]},
    }
    given[1, 1, 1:, 0, 1] += 0.004
    assert drift(given)["gripper"]["imagined"] == [5.0, 5.66]


def test_a_success_may_be_called_up_to_eight_steps_late():
    assert [agree(pair(28, 20), step) for step in (19, 20, 27, 28)] == [True] * 4
    assert [agree(pair(29, 20), step) for step in (19, 20, 28, 29)] == [True, False, False, True]
    assert [agree(pair(NEVER, 20), step) for step in (19, 20, 64)] == [True, False, False]


@pytest.mark.parametrize(
    ("given", "pairs", "steps", "ends"),
    [
        (tracks([9, 10, 9], [14, 15, 14]), [pair(2, 2)] * 4, 3, []),
        (tracks([9, 11, 9], [14, 15, 16]), [pair(2, 2)] * 4, 1, ["gripper"]),
        (tracks([9, 9, 11], [14, 15, 16]), [pair(2, 2)] * 4, 2, ["gripper", "object"]),
        (tracks([9, 9, 9], [14, 15, 14]), [pair(2, 2)] * 3 + [pair(3, NEVER)], 2, ["agreement"]),
        (tracks([99] * 3, [9] * 3), [pair(1, NEVER)] * 4, 0, ["gripper", "agreement"]),
    ],
)
def test_the_imagination_is_usable_until_a_limit_is_passed(given, pairs, steps, ends):
    found = summary(pairs, given)
    assert (found["usable_horizon"], found["usable_horizon_ends_by"]) == (steps, ends)
    told = table(report(pairs, {"base": given}))
    assert f"Usable to step {steps}{', where ' + ' and '.join(ends) if ends else '.'}" in told


def test_policies_drift_together_only_where_all_were_located():
    pairs = [pair(2, 2)] * 2 + [pair(2, 2, policy="other")] * 4
    both = {"base": tracks([2], [2], 2), "other": tracks([8], [8], 4)}
    found = report(pairs, both)
    assert found["drift"]["object"]["imagined"] == [8.0]  # the median of 2, 2, 8, 8, 8, 8
    assert found["policies"]["base"]["drift"]["object"]["imagined"] == [2.0]
    found = report(pairs, {"base": both["base"]})
    assert found["drift"] is None and found["usable_horizon"] is None
    assert found["policies"]["base"]["usable_horizon"] == 1


def test_every_rate_has_wilsons_interval():
    found = summary(MIXED)
    # 3 of 4: centre (.75 + z^2 / 8) / (1 + z^2 / 4) = 0.62753, half 0.32689.
    rate = found["hallucinated_success_rate"]
    assert rate["rate"] == 0.75
    assert (rate["low"], rate["high"]) == pytest.approx((0.30064, 0.95441), abs=1e-4)
    assert found["paired_accuracy"] == wilson(4, 9)._asdict()


def test_by_step_counts_only_what_had_happened():
    pairs = [pair(30, 40, 45), pair(50, 40, 45), pair(10, NEVER), pair(NEVER, 16)]
    found = summary(pairs)["by_step"]
    assert list(found) == [str(step) for step in STEPS] == ["16", "32", "48", "64"]
    # By step 16 the last has succeeded in truth, and the third in imagination; by 32 the first in
    # imagination too; by 48 the first two in truth; by 64 all that will.
    assert counts(found["16"], *RATES) == [(1, 3), (1, 1), (2, 4)]
    assert counts(found["32"], *RATES) == [(2, 3), (1, 1), (1, 4)]
    assert counts(found["48"], *RATES) == [(1, 1), (2, 3), (1, 4)]
    assert counts(found["64"], *RATES) == [(1, 1), (1, 3), (2, 4)]
    assert counts(found["48"], "missed_by_dynamics") == [(1, 3)]  # the second: seen on the video


@pytest.mark.parametrize(("step", "kept"), [(19, None), (20, 20), (21, 20)])
def test_a_step_itself_has_happened(step, kept):
    assert until(pair(20, 20, 20), step) == pair(kept, kept, kept)


def test_policies_are_summarised_apart_and_together():
    pairs = [pair(20, 20, policy="b"), pair(20, NEVER, policy="a"), pair(20, 20, policy="b")]
    found = report(pairs)
    assert found["pairs"] == 3 and counts(found, "paired_accuracy") == [(2, 3)]
    assert list(found["policies"]) == ["b", "a"]
    assert found["policies"]["b"] == summary([pairs[0], pairs[2]])
    assert found["policies"]["a"] == summary([pairs[1]])


def test_a_rate_without_episodes_is_none_and_all_is_json():
    found = report([pair(20, 20, 20)])
    assert found["hallucinated_success_rate"] is None
    assert found["hallucinated_by_dynamics"] is None
    assert json.loads(json.dumps(found)) == found
    assert summary([])["paired_accuracy"] is None


@pytest.mark.parametrize(
    ("imagined", "real", "expected"),
    [
        (30, NEVER, "hallucinated"),
        (NEVER, 30, "missed"),
        (64, 1, "success"),
        (NEVER, NEVER, "failure"),
    ],
)
def test_a_pair_is_of_one_kind_whatever_the_classifier_says_of_the_video(imagined, real, expected):
    assert kind(pair(imagined, real)) == kind(pair(imagined, real, 20)) == expected


def test_the_first_of_each_kind_are_examples():
    outcomes = [(30, 20), (NEVER, NEVER), (30, NEVER), (NEVER, 20)]
    pairs = [pair(*outcomes[s % 4], start=s) for s in range(24)]  # six of each kind
    found = [(kind(p), p.start) for p in examples(pairs)]
    assert found == [
        *(("hallucinated", s) for s in (2, 6, 10, 14)),
        *(("missed", s) for s in (3, 7, 11, 15)),
        *(("success", s) for s in (0, 4)),
        *(("failure", s) for s in (1, 5)),
    ]
    assert [p.start for p in examples(pairs[:3])] == [2, 0, 1]


def test_every_pair_has_a_video_of_its_own_in_one_folder():
    names = ("a/b", "a_b", "a%2Fb", "<b>", "a")
    files = [video_name(pair(30, NEVER, policy=name, start=7)) for name in names]
    assert files[0] == "a%2Fb-7-hallucinated.mp4" and files[-1] == "a-7-hallucinated.mp4"
    assert len(set(files)) == len(names)
    assert not any(set("/<>") & set(file) for file in files)


def test_the_table_by_hand():
    pairs = [pair(30, 20, 26), pair(30, NEVER, 28), pair(30, NEVER), pair(NEVER, 20, policy="x")]
    lines = table(report(pairs)).splitlines()
    assert lines[0].split() == "pairs imagined real hallucinated missed accuracy".split()
    assert [line[:15].rstrip() for line in lines[1:8]] == [
        "base",
        "x",
        "all",
        *(f"all, by step {step}" for step in STEPS),
    ]
    assert lines[2].split()[:2] == ["x", "1"]
    assert lines[2].endswith(f"-  {wilson(1, 1)}      {wilson(0, 1)}")
    cells = f"{wilson(2, 2)} {wilson(1, 2)} {wilson(1, 4)}"
    assert lines[3].split() == f"all 4 75.0 % 50.0 % {cells}".split()
    assert lines[5].split() == f"all, by step 32 {cells}".split()
    assert lines[8:] == [
        "Of the hallucinated successes, the classifier's own errors: 1 of 2.",
        "Of the missed successes, the classifier's own errors: 1 of 1.",
        "F1 of imagined verdicts 0.400, of those on real video 0.500.",
    ]


def test_the_table_of_no_successes_has_no_f1():
    lines = table(report([pair(NEVER, NEVER)])).splitlines()
    assert lines[-2] == "Of the missed successes, the classifier's own errors: 0 of 0."
    assert lines[-1] == "F1 of imagined verdicts -, of those on real video -."


def test_pairs_come_back_from_their_file(tmp_path):
    pairs = [pair(30, NEVER, 28, "a, b", 7, 0.1234), pair(NEVER, 64, NEVER, start=127)]
    pairs[0] = pairs[0]._replace(failure="slipped")
    write_pairs(tmp_path / "run" / "audit.csv", pairs)
    text = (tmp_path / "run" / "audit.csv").read_text()
    columns = "policy,start,imagined_step,real_step,judged_step,probability,failure"
    assert text.splitlines()[0] == columns
    assert text.splitlines()[1] == '"a, b",7,30,,28,0.1234,slipped'
    assert read_pairs(tmp_path / "run" / "audit.csv") == pairs


def test_a_failed_write_leaves_the_old_table(tmp_path):
    def broken():
        yield pair(30, NEVER)
        raise KeyboardInterrupt

    path = tmp_path / "audit.csv"
    write_pairs(path, MIXED)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(path, broken())
    assert read_pairs(path) == MIXED and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "columns"), [("policy,seed\n", "policy, seed"), ("", "of an empty file")]
)
def test_another_table_is_refused(tmp_path, text, columns):
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(ValueError, match=f"other.csv has the columns {columns}; expected policy"):
        read_pairs(tmp_path / "other.csv")

"""Published tables are what the results files say."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from trainers import compare
from wm_gym.success.classifier import SuccessClassifier

ROOT = Path(__file__).parents[1]
PAGE = "# Page\n\n<!-- results:begin -->\nold\n<!-- results:end -->\n\nThe rest stays.\n"
ORIGIN = {
    "command": "wm-gym wmpo",
    "commit": "0123456789abcdef",
    "machine": {"cpu": "Z80", "cores": 2, "gpu": None},
    "seeds": [0, 1],
    "date": "2026-11-22T12:00:00+00:00",
}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "docs")
        return importlib.import_module("make_tables")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with two pages, and a result in which 40 % become 60 %."""
    base = {"n": 200, "successes": 80, "rate": 0.4, "low": 0.334, "high": 0.469}
    improved = {"n": 200, "successes": 120, "rate": 0.6, "low": 0.531, "high": 0.666}
    difference = {"points": 20.0, "low": 12.0, "high": 28.0}
    run = {
        "replicate": 0,
        "seed": 1,
        "base": base,
        "improved": improved,
        "imagined_base": {**base, "rate": 0.45},
        "imagined_improved": {**improved, "rate": 0.7},
        "paired_difference": difference,
        "episodes": [],
    }
    result = {
        **ORIGIN,
        "runs": [run],
        "pooled": difference,
        "controls": {"more_cloning": base},
        "real_episodes": {"demonstrations": 60, "play": 240, "rollouts": 128, "validation": 64},
        "wall_seconds": {"clone": 90.0, "grpo": 600.0},
    }
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "docs/results/lift_bundled.json").write_text(json.dumps(result))
    (tmp_path / "docs/results.md").write_text(PAGE.replace("results", "stages"))
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def test_tables_agree_with_the_published_results(pages, capsys):
    assert pages.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda p: p.stem
)
def test_published_results_come_from_a_commit_as_it_is(path):
    commit = json.loads(path.read_text())["commit"]
    assert len(commit) == 40 and not commit.endswith("-dirty")


def test_the_rule_of_success_is_that_of_the_bundle():
    c = SuccessClassifier.from_pretrained("lift").config
    told = f"(bundled: {c.threshold:g} in {c.hold_k} consecutive steps)"
    assert c.hold_k == c.hold_n and told in (ROOT / "docs/environments.md").read_text()


@pytest.mark.parametrize(
    ("runs", "result"), [("bundled", "lift_bundled.json"), ("lift", "lift_wmpo.json")]
)
def test_the_published_result_is_what_the_outcomes_beside_it_come_to(tmp_path, runs, result):
    folders = sorted((ROOT / "docs/results" / runs).iterdir())
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    compare.publish(copies, tmp_path / "results.json")
    found, published = (
        json.loads(path.read_text())
        for path in (tmp_path / "results.json", ROOT / "docs/results" / result)
    )
    for key in ("runs", "pooled", "controls", "real_episodes", "wall_seconds", "seeds"):
        assert found[key] == published[key], key


def test_a_section_is_written_from_its_file_and_the_rest_stays(pages, checkout):
    assert pages.main(["--root", str(checkout)]) == 0
    page = (checkout / "README.md").read_text()
    assert "old" not in page and page.endswith("\n\nThe rest stays.\n")
    row = next(line for line in page.splitlines() if line.startswith("| bundled run, GRPO seed 1"))
    assert row.split(" | ")[1:] == [
        "40.0 % [33.4, 46.9] (n = 200)",
        "60.0 % [53.1, 66.6] (n = 200)",
        "+20.0 points [12.0, 28.0]",
        "45.0 % → 70.0 % |",
    ]
    assert "| more cloning | 40.0 % [33.4, 46.9] (n = 200) |" in page
    assert "60 demonstrations, 240 episodes of play, 128 rollouts of the base policy, 64 on" in page
    assert "| **all runs** |  |  | **+20.0 points [12.0, 28.0]** |" in page
    assert "2 cores of Z80, no GPU; 2026-11-22." in page


def test_runs_of_several_replicates_are_numbered(pages, checkout):
    content = json.loads((checkout / "docs/results/lift_bundled.json").read_text())
    content["runs"] *= 2
    assert "| **both GRPO seeds** |" in pages.tables.results(content, "bundled run")
    told = pages.tables.results(content)
    assert "| replicate 0, GRPO seed 1 |" in told and "| **all runs** |" in told
    assert "Episodes of each replicate played in robosuite: 60 demonstrations," in told


def test_memory_of_a_stage_is_the_most_that_any_of_its_parts_held(pages, tmp_path):
    done = tmp_path / "bundled/replicate-1/done"
    done.mkdir(parents=True)
    marks = {
        "starts": {"peak_memory": 0},  # not known
        "grpo": {"policy_improved_0": {"peak_memory": 4_780_000_000}, "peak_memory": 490_000_000},
        "policy_improved_0": {"peak_memory": 4_780_000_000},
        "test": {"real/policy_base": "39 %"},
        "test_real_policy_base": {"peak_memory": 600_000_000},
        "test_imagined_policy_base": {"peak_memory": 710_000_000},
    }
    for name, mark in marks.items():
        (done / f"{name}.json").write_text(json.dumps(mark))
    page = pages.fill("<!-- memory:begin --><!-- memory:end -->", tmp_path)
    assert "in GB: grpo 4.8, test 0.7. Simulator" in page


def test_stages_are_minutes_with_their_sum(pages, checkout):
    pages.main(["--root", str(checkout)])
    page = (checkout / "docs/results.md").read_text()
    assert "| clone | 1.5 min |\n| grpo | 10.0 min |\n| **all** | 11.5 min |" in page
    assert "`wm-gym wmpo` at commit `0123456789ab`, seeds 0, 1." in page


def test_check_fails_on_a_stale_page_and_leaves_it_alone(pages, checkout, capsys):
    assert pages.main(["--check", "--root", str(checkout)]) == 1
    assert "README.md, docs/results.md: tables differ" in capsys.readouterr().out
    assert (checkout / "README.md").read_text() == PAGE
    pages.main(["--root", str(checkout)])
    assert pages.main(["--check", "--root", str(checkout)]) == 0


def test_speed_rows_become_a_table_as_they_are(pages, tmp_path):
    rows = [{"num_envs": 64, "chunk": 8, "steps_per_second": 1234.5, "draw_ms": 12.25}]
    content = {**ORIGIN, "rows": rows, "step_seconds": {"8": 0.1, "512": 0.101}}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    page = pages.fill("<!-- speed:begin --><!-- speed:end -->", tmp_path)
    assert "| num envs | chunk | steps per second |\n" in page and "| 64 | 8 | 1,234 |\n" in page
    page = pages.fill("<!-- parts:begin --><!-- parts:end -->", tmp_path)
    assert "| num envs | chunk | draw ms |\n" in page and "| 64 | 8 | 12.25 |\n" in page
    assert "100 ms at 8, 101 ms at 512." in page


def test_speed_rows_of_another_machine_say_how_they_were_made(pages, tmp_path):
    made = {
        **ORIGIN,
        "command": "speed.py --there",
        "machine": {**ORIGIN["machine"], "gpu": "H200"},
    }
    rows = [{"num_envs": 1, "chunk": 8, "real": 2.0}]
    rows += [{"made": made, "num_envs": n, "chunk": 8, "peak": 9} for n in (1, 2)]
    content = {**ORIGIN, "rows": rows, "step_seconds": {"8": 0.1}}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    page = pages.fill("<!-- speed:begin --><!-- speed:end -->", tmp_path)
    assert "| num envs | chunk | real |\n| --- | --- | --- |\n| 1 | 8 | 2 |\n\nMade" in page
    assert "| num envs | chunk | peak |\n" in page
    assert page.index("| 2 | 8 | 9 |\n\nMade by `speed.py --there`") < page.index("H200; 2")


def test_parts_are_those_of_the_command_that_timed_steps_by_the_clock(pages, tmp_path):
    made = {**ORIGIN, "step_seconds": {"8": 0.2}}
    rows = [{"num_envs": 2048, "chunk": 8, "draw_ms": 1.0}]
    rows += [{"made": made, "num_envs": 1024, "chunk": 8, "draw_ms": 3.0}]
    (tmp_path / "speed.json").write_text(json.dumps({**ORIGIN, "rows": rows}))
    page = pages.fill("<!-- parts:begin --><!-- parts:end -->", tmp_path)
    assert "| 1,024 | 8 | 3 |\n" in page and "2,048" not in page and "200 ms at 8." in page
    (tmp_path / "speed.json").write_text(json.dumps({**ORIGIN, "rows": rows[:1]}))
    assert "Not measured yet" in pages.fill("<!-- parts:begin --><!-- parts:end -->", tmp_path)


def test_speed_in_short_has_chunks_in_many_environments_of_all_machines(pages, tmp_path):
    own = {"device": "Z80", "preset": "its own", "steps_per_second": 1234.5, "every_picture": 600.4}
    rows = [
        own | {"num_envs": n, "chunk": c, "real_steps_per_second": 20.4}
        for n, c in ((1, 8), (64, 1), (64, 8))
    ]
    rows += [own | {"device": "H200", "preset": "small", "num_envs": 256, "chunk": 8}]
    rows += [
        own | {"device": "H200", "preset": "paper", "num_envs": n, "chunk": 8} for n in (8, 16)
    ]
    (tmp_path / "speed.json").write_text(json.dumps({**ORIGIN, "rows": rows}))
    page = pages.fill("<!-- speed-summary:begin --><!-- speed-summary:end -->", tmp_path)
    assert page.count("| Z80 |") == 1
    assert "| Z80 | bundled | 64 | 1,234 | 600 | 20 | – |" in page
    assert "| H200 | `small` | 256 | 1,234 | 600 | – | – |" in page
    assert "| `paper` | 16 |" in page and "| `paper` | 8 |" not in page  # as many as there were


@pytest.mark.parametrize(
    ("parts_at", "verdict"),
    [
        (None, "That imagined success becomes optimistic is not shown"),
        (20, "Imagined success has become optimistic at iteration 20"),
    ],
)
@pytest.mark.parametrize(
    ("misleads_at", "told"),
    [
        (None, "neither is that hallucinated successes become more frequent"),
        (40, "hallucinated successes are more frequent at iteration 40"),
    ],
)
def test_overoptimization_shows_both_worlds_by_iteration(
    pages, tmp_path, parts_at, verdict, misleads_at, told
):
    rate = {"n": 4, "successes": 2, "rate": 0.5, "low": 0.15, "high": 0.85}
    bias = {"points": -1.5, "low": -4.0, "high": 1.0}
    row = {"iteration": 20, "imagined": rate, "real": {**rate, "rate": 0.75}, "bias": bias}
    row["replayed"] = {"hallucinated_success_rate": None, "missed_success_rate": rate}
    content = {**ORIGIN, "rows": [row], "parts_at": parts_at, "misleads_at": misleads_at}
    (tmp_path / "lift_overoptimization.json").write_text(json.dumps(content))
    page = pages.fill("<!-- overoptimization:begin --><!-- overoptimization:end -->", tmp_path)
    assert "| 20 | 50.0 % [15.0, 85.0] (n = 4) | 75.0 % [15.0, 85.0] (n = 4) | -1.5 points" in page
    assert "-1.5 points [-4.0, 1.0] | – | 50.0 % [15.0, 85.0] (n = 4) |" in page
    assert f"{verdict}; {told}. Made by" in page


def test_agreement_shows_every_policy_and_how_they_rank(pages, tmp_path):
    rate = {"n": 4, "successes": 2, "rate": 0.5, "low": 0.15, "high": 0.85}
    bias = {"points": -1.5, "low": -4.0, "high": 1.0}
    row = {"policy": "shy", "noise": 0.2, "imagined": rate, "real": rate, "bias": bias}
    found = {"pearson": 0.9, "pearson_fisher": {"low": 0.7, "high": 0.95}, "spearman": 0.8}
    names = ("policy_improved_0", "00080", "good/policy_base", "policy_clone_longer")
    rows = [row, *({**row, "policy": name} for name in names)]
    content = {**ORIGIN, "policies": rows, "agreement": {**found, "mmrv": 0.0125}}
    (tmp_path / "lift_agreement.json").write_text(json.dumps(content))
    page = pages.fill("<!-- agreement:begin --><!-- agreement:end -->", tmp_path)
    assert "| shy | 0.2 | 50.0 % [15.0, 85.0] (n = 4) | 50.0 %" in page and "-1.5 points" in page
    assert "| improved, GRPO seed 0 | 0.2 |" in page and "| after 80 iterations | 0.2 |" in page
    assert "| clone longer | 0.2 |" in page
    assert "| base (good) | 0.2 |" in page
    assert "r 0.900 [0.700, 0.950], Spearman's rho 0.800, MMRV 0.013. Made by" in page


def test_overhead_is_in_milliseconds_and_percent(pages, tmp_path):
    row = {"num_envs": 64, "chunk": 8, "model_seconds": 0.3, "env_seconds": 0.309, "overhead": 0.03}
    content = {
        **ORIGIN,
        "rows": [row],
        "deterministic_rows": [{**row, "times_batched": 2.04}],
        "frozen": {"full_seconds": 0.3, "quarter_seconds": 0.075, "ratio": 0.25},
    }
    (tmp_path / "env_overhead.json").write_text(json.dumps(content))
    page = pages.fill("<!-- overhead:begin --><!-- overhead:end -->", tmp_path)
    assert "| 64 | as usual | 300 | 309 | +3.0 % | 1.0 |" in page
    assert "| 64 | exact | 300 | 309 | +3.0 % | 2.0 |" in page
    assert "a step takes 25 % of its full time (75 of 300 ms)." in page


def test_ablations_are_variants_by_step(pages, tmp_path):
    row = {"variant": "recurrent", "steps": 900, "weights": 5, "flop": 281_000_000}
    row |= {"psnr": {"1": 31.04, "16": 25.3}, "psnr_lost_other_actions": {"8": 9.04, "16": 11.96}}
    rows = [row, {**row, "variant": "transformer", "sampling_steps": 4}]
    (tmp_path / "ablations.json").write_text(json.dumps({**ORIGIN, "rows": rows}))
    page = pages.fill("<!-- ablations:begin --><!-- ablations:end -->", tmp_path)
    assert "| dB at 1 | dB at 16 | dB lost at 8 | at 16 |\n" in page
    assert "| recurrent |  | 900 | 0.28 | 31.0 | 25.3 | 9.0 | 12.0 |" in page
    assert "| transformer | 4 | 900 | 0.28 | 31.0 | 25.3 | 9.0 | 12.0 |" in page


def test_fidelity_is_a_table_by_step(pages, tmp_path):
    steps = {"1": 31.24, "64": 21.46}
    content = {
        **ORIGIN,
        "episodes": 20,
        **{key: steps for key in ("psnr", "moving_psnr", "psnr_lost_other_actions")},
        "gripper_drift_mm": {"1": 0.83, "64": 9.16},
        "drift": {"probe_median_mm": {"gripper": 2.04}},
        "long": {"episodes": 16, "psnr": {"64": 20.0, "512": 19.0}},
    }
    (tmp_path / "lift_fidelity.json").write_text(json.dumps(content))
    page = pages.fill("<!-- fidelity:begin --><!-- fidelity:end -->", tmp_path)
    assert "| 64 | 21.5 | 21.5 | 21.5 | 9.2 |" in page
    assert "off by 2.0 mm (gripper) on real pictures. In 16 much longer episodes: 20.0 dB" in page
    assert "20.0 dB at 64, 19.0 dB at 512." in page and "reference" not in page
    content["aside"] = {"mm": 0.8, "psnr": {"64": 29.0}}
    content["long"]["aside"] = {"mm": 0.8, "psnr": {"64": 28.0, "512": 16.0}}
    (tmp_path / "lift_fidelity.json").write_text(json.dumps(content))
    page = pages.fill("<!-- fidelity:begin --><!-- fidelity:end -->", tmp_path)
    assert "Upper reference, robosuite itself, its object started 0.8 mm aside: 29.0 dB" in page
    assert "19.0 dB at 512; upper reference: 28.0 dB at 64, 16.0 dB at 512." in page


@pytest.fixture
def audited() -> dict:
    """An audit that no limit ended: lift_audit.json."""
    rate = {"n": 100, "successes": 10, "rate": 0.1, "low": 0.055, "high": 0.174}
    names = ("hallucinated_success_rate", "missed_success_rate", "paired_accuracy")
    return {
        **ORIGIN,
        **dict.fromkeys(names, rate),
        **dict.fromkeys(("f1_real", "f1_imagined", "mmrv", "counterfactual_auroc"), 0.9),
        "pairs": 256,
        "failures": {"never_grasped": 7, "late": 3},
        "usable_horizon": 64,
        "usable_horizon_ends_by": [],
        "policies": 10,
        "pearson_r": {"value": 0.951, "low": 0.8, "high": 0.99},
        "counterfactual_optimism": {**rate, "rate": 0.35},
        "counterfactual_auroc_perturbed": 0.85,
        "counterfactual_sequences": 96,
        "measured": {
            "audit": {**ORIGIN, "command": "wm-gym audit", "split": "test"},
            "agreement": {**ORIGIN, "command": "wm-gym agree", "split": "validation"},
        },
    }


def test_an_audit_is_a_table_of_its_figures(pages, tmp_path, audited):
    (tmp_path / "lift_audit.json").write_text(json.dumps(audited))
    page = pages.fill("<!-- audit:begin --><!-- audit:end -->", tmp_path)
    assert "| 256 paired episodes |  |" in page
    assert "| real failures imagined as successes | 10.0 % [5.5, 17.4] (n = 100) |" in page
    assert "| never grasped 7, late 3 |" in page.replace("hallucinated successes ", "")
    assert "10 policies | 0.951 [0.800, 0.990] |" in page
    assert "held-out families | 0.850 |\n" in page
    assert "fail in robosuite, imagined as successes | 35.0 % [5.5, 17.4] (n = 100) |" in page
    assert "\n- audit: test starts, by `wm-gym audit` at commit `0123456789ab`\n" in page
    assert "\n- agreement: validation starts, by `wm-gym agree`" in page


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ([], "64 (the whole episode; no limit was reached)"),
        (["object", "agreement"], "64 (ended by object and agreement)"),
    ],
)
def test_an_audit_says_what_ends_the_usable_horizon(pages, audited, ends, told):
    content = {**audited, "usable_horizon_ends_by": ends}
    for write in (pages.tables.audit, pages.tables.audit_summary):
        assert f"| usable horizon, control steps | {told} |" in write(content)


def test_an_audit_in_short_says_on_which_starts(pages, audited):
    told = pages.tables.audit_summary(audited)
    assert "Measured: audit from test starts, agreement from validation starts." in told
    assert "fail in robosuite, imagined as successes | 35.0 % [5.5, 17.4] (n = 100) |" in told


def test_without_a_file_a_section_says_that_nothing_is_measured(pages, tmp_path):
    page = pages.fill(PAGE, tmp_path)
    assert page == PAGE.replace("old", "*Not measured yet.*")

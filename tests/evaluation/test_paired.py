"""Results files: what they hold and what they refuse."""

from __future__ import annotations

import json
import subprocess

import pytest

from wm_gym.evaluation import paired
from wm_gym.evaluation.statistics import wilson

# Pytest's own arguments would land in the command.
ARGV = ["/somewhere/bin/wm-gym", "wmpo", "--name", "two words"]


def row(replicate: int = 0, **changes) -> dict:
    facts = {
        "starts": [4, 7, 9, 11],
        "base": [False, True, False, False],
        "improved": [True, True, False, True],
        "imagined_base": [True, False],
        "imagined_improved": [True, True],
    }
    return paired.run_row(replicate=replicate, seed=100 + replicate, **(facts | changes))


@pytest.fixture
def origin(monkeypatch) -> dict:
    monkeypatch.setattr("sys.argv", ARGV)
    return paired.provenance([100, 101])


@pytest.fixture
def content(origin) -> dict:
    return paired.result(
        [row(0), row(1, improved=[False] * 4)],
        controls={"cloning": [[True] * 3 + [False]]},
        real_episodes={"demonstrations": 100, "play": 200, "rollouts": 128, "validation": 64},
        wall_seconds={"collect": 12.345},
        origin=origin,
    )


def test_run_row_holds_rates_difference_and_episodes():
    run = row()
    assert (run["replicate"], run["seed"]) == (0, 100)
    assert run["base"] == wilson(1, 4)._asdict() and run["improved"] == wilson(3, 4)._asdict()
    assert run["imagined_base"]["rate"] == 0.5 and run["imagined_improved"]["n"] == 2
    assert run["paired_difference"]["points"] == 50.0
    assert run["episodes"][0] == {"start": 4, "base": False, "improved": True}
    assert [e["start"] for e in run["episodes"]] == [4, 7, 9, 11]


def test_result_pools_the_runs(content):
    # Gains are +50 and -25 points.
    assert content["pooled"]["points"] == 12.5
    assert content["controls"]["cloning"] == wilson(3, 4)._asdict()
    assert content["wall_seconds"] == {"collect": 12.3}
    assert content["real_episodes"]["rollouts"] == 128
    assert content["seeds"] == [100, 101]


def pooled(origin, *rows: dict) -> tuple[float, ...]:
    nothing = {"controls": {}, "real_episodes": {}, "wall_seconds": {}}
    return tuple(paired.result(rows, **nothing, origin=origin)["pooled"].values())


def test_seeds_of_a_replicate_are_averaged_before_replicates_are_pooled(origin):
    fail, succeed = [False] * 4, [True] * 4
    # Replicate 0: seeds gain 100 and 0 points, 50 on average. Replicate 1: 100. The mean of the
    # three runs would be 66.7. Replicates drawn with replacement give 50, 75 or 100 points.
    rows = [row(0, base=fail, improved=succeed), row(0, base=fail, improved=fail)]
    found = pooled(origin, *rows, row(1, base=fail, improved=succeed))
    assert found == pytest.approx((75.0, 50.0, 100.0))


def test_seeds_are_no_replicates(origin):
    # Seeds of one replicate that gain 100 and 0 points from every start: 50, whatever is drawn.
    fail, succeed = [False] * 4, [True] * 4
    rows = [row(0, base=fail, improved=succeed), row(0, base=fail, improved=fail)]
    assert pooled(origin, *rows) == pytest.approx((50.0, 50.0, 50.0))


def test_result_is_json_that_comes_back(content, tmp_path):
    paired.write_result(tmp_path / "results" / "a.json", content)
    assert json.loads((tmp_path / "results" / "a.json").read_text()) == content


def test_provenance_names_the_command_without_its_path(origin):
    assert origin["command"] == "wm-gym wmpo --name 'two words'"
    assert set(origin) == {"command", "commit", "machine", "seeds", "date"}
    assert origin["machine"]["cores"] >= 1 and origin["machine"]["cpu"]
    assert origin["date"].endswith("+00:00")


def test_commit_is_none_outside_git(monkeypatch, tmp_path):
    monkeypatch.setattr(paired, "__file__", str(tmp_path / "wm_gym" / "evaluation" / "paired.py"))
    assert paired.provenance([])["commit"] is None


def test_commit_says_when_there_are_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(paired, "__file__", str(tmp_path / "wm_gym" / "evaluation" / "paired.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "--no-verify", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    clean = paired.provenance([])["commit"]
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert paired.provenance([])["commit"] == f"{clean}-dirty"


def test_table_prints_imagined_beside_real(content):
    lines = paired.table(content).splitlines()
    assert lines[0].split("  ")[0] == "" and "imagined" in lines[0]
    assert lines[1].split() == "replicate 0 base 25.0 % 4 4.6 to 69.9 50.0 %".split()
    assert lines[2].startswith("replicate 0 improved   75.0 %  4   30.1 to 95.4   100.0 %")
    assert lines[2].endswith(str(row()["paired_difference"]["high"]) + "]")
    assert lines[5].split() == "control: cloning 75.0 % 4 30.1 to 95.4".split()
    assert lines[6].startswith("pooled") and "+12.5 points [" in lines[6]


def test_unpaired_arrays_are_refused():
    with pytest.raises(ValueError, match=r"one success of each policy a start.*\(3,\)"):
        row(base=[True] * 3)
    with pytest.raises(ValueError, match="3 distinct of"):
        row(starts=[1, 1, 2, 3])


def test_runs_on_different_starts_are_not_pooled(origin):
    with pytest.raises(ValueError, match="same starts"):
        paired.result(
            [row(0), row(1, starts=[0, 1, 2, 3])],
            controls={},
            real_episodes={},
            wall_seconds={},
            origin=origin,
        )

"""The command `wm-gym report`: where the page goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.evaluation.test_page import PAIRS, write_audit
from trainers.cli import main
from trainers.report import AUDITED, numbers


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["wm-gym", "report", *arguments])
    main()


@pytest.mark.parametrize(("path", "written"), [((), "a/report.html"), (("--path", "b"), "b")])
def test_the_page_goes_into_the_folder_or_where_it_is_told(
    monkeypatch, tmp_path, capsys, path, written
):
    monkeypatch.chdir(tmp_path)
    write_audit(tmp_path / "a", PAIRS)
    run(monkeypatch, "a", *path)
    assert capsys.readouterr().out == f"Written: {written}\n"
    assert (tmp_path / written).read_text().startswith("<!doctype html>")


def test_a_folder_without_an_audit_is_refused_in_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="wm-gym: There is no audit.json in .*; name a folder"):
        run(monkeypatch, str(tmp_path))
    assert not list(tmp_path.iterdir())


ORIGIN = {"command": "wm-gym x", "commit": "abc", "date": "2026-11-23", "seeds": [3], "machine": {}}
WEIGHTS = {"world_model": "aaaa", "success": "bbbb", "policies": {"base": "cccc"}}
RATE = {"n": 40, "successes": 2, "rate": 0.05, "low": 0.01, "high": 0.17}


def measured(folder: Path, **other: str) -> list[str]:
    """Write the three reports into folders of their own; `other` names a report's world model."""
    audit = {name: RATE for name in AUDITED} | {"pairs": 96, "usable_horizon": 24}
    agreement = {
        "policies": 10,
        "pearson": 0.93,
        "pearson_fisher": {"low": 0.72, "high": 0.98},
        "spearman": 0.9,
        "mmrv": 0.04,
        "mmrv_inclusive": 0.05,
        "bias_points": 3.0,
    }
    held_out = {"auroc": 0.88, "auroc_perturbed": 0.84, "optimism": RATE, "sequences": 60}
    parts = {
        "audit": audit,
        "agreement": {"agreement": agreement},
        "counterfactuals": {"held_out": held_out},
    }
    for name, part in parts.items():
        weights = WEIGHTS | {"world_model": other.get(name, "aaaa")}
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(
            json.dumps(ORIGIN | part | {"weights": weights})
        )
    return [folder / name for name in parts]


def test_the_numbers_of_three_reports_come_together(tmp_path):
    found = numbers(measured(tmp_path))
    assert found["pairs"] == 96 and found["hallucinated_success_rate"] == RATE
    assert found["usable_horizon"] == 24
    assert found["policies"] == 10 and found["mmrv"] == 0.04
    assert found["pearson_r"] == {"value": 0.93, "low": 0.72, "high": 0.98}
    assert found["counterfactual_auroc"] == 0.88
    assert found["counterfactual_auroc_perturbed"] == 0.84
    assert found["seeds"] == [3] and found["commit"] and found["machine"]
    assert found["measured"]["agreement"]["command"] == "wm-gym x"
    assert found["weights"] == {"world_model": "aaaa", "success": "bbbb"}


def test_numbers_of_two_world_models_are_not_put_together(tmp_path):
    with pytest.raises(ValueError, match="reports of one world_model, got .*agreement.*dddd"):
        numbers(measured(tmp_path, agreement="dddd"))


def test_a_report_that_is_missing_is_named_and_nothing_is_written(monkeypatch, tmp_path):
    write_audit(tmp_path / "a", PAIRS)
    with pytest.raises(SystemExit, match="wm-gym: There is no agreement.json in .*a; --numbers"):
        run(monkeypatch, str(tmp_path / "a"), "--numbers", str(tmp_path / "n.json"))
    assert not (tmp_path / "n.json").exists() and not (tmp_path / "a/report.html").exists()

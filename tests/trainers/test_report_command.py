"""The command `wm-gym report`: where the page goes."""

from __future__ import annotations

import sys

import pytest

from tests.evaluation.test_page import PAIRS, write_audit
from trainers.cli import main


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

"""The page of a made-up audit: what it shows, that it needs nothing else, what it refuses."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.test_counterfactuals import rows as perturbed
from tests.evaluation.test_figures import REPORT
from wm_gym.evaluation.audit import Pair, report, write_pairs
from wm_gym.evaluation.counterfactuals import report as counterfactual_report
from wm_gym.evaluation.page import facts, render, write_page
from wm_gym.evaluation.statistics import wilson

NEVER = None
# The first is wrong once among two real failures and once among three real successes.
PAIRS = [
    Pair("<b>bold</b>/0", 0, 30, NEVER, 28, 0.97, "gripper_drift"),
    Pair("<b>bold</b>/0", 1, NEVER, NEVER, NEVER, 0.1),
    Pair("<b>bold</b>/0", 2, NEVER, 20, NEVER, 0.42),
    Pair("<b>bold</b>/0", 3, 33, 31, 37, 0.9),
    Pair("<b>bold</b>/0", 4, 33, 31, 37, 0.9),
    Pair("shy", 0, NEVER, NEVER, NEVER, 0.2),
]
FILMS = {
    "%3Cb%3Ebold%3C%2Fb%3E%2F0-0-hallucinated.mp4": b"the hallucination",
    "%3Cb%3Ebold%3C%2Fb%3E%2F0-2-missed.mp4": b"the miss",
    "shy-0-missed.mp4": b"what the table does not say",
}
ORIGIN = {
    "command": "wm-gym audit --policies '<b>bold</b>/0' shy",
    "commit": "0123456789abcdef",
    "machine": {"cpu": "Z80", "cores": 2, "gpu": None},
    "seeds": [7],
    "date": "2026-11-22T12:00:00+00:00",
}


RATES = {world: wilson(n, 8)._asdict() for world, n in (("real", 3), ("imagined", 5))}


def write_audit(folder: Path, pairs: list[Pair]) -> Path:
    names = list(dict.fromkeys(pair.policy for pair in pairs))
    content = {
        **ORIGIN,
        **{"task": "Lift", "split": "validation", "world_model": "lift", "success": "lift"},
        "weights": {
            "world_model": "aaaa1111",
            "success": "bbbb2222",
            "policies": {name: f"cccc{i}" for i, name in enumerate(names)},
        },
        "played": {name: {"date": ORIGIN["date"]} for name in names},
        **report(pairs),
    }
    (folder / "videos").mkdir(parents=True)
    write_pairs(folder / "audit.csv", pairs)
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    write_audit(tmp_path / "audit", PAIRS)
    for name, content in FILMS.items():
        (tmp_path / "audit/videos" / name).write_bytes(content)
    return tmp_path / "audit"


def add(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content))


class Reader(HTMLParser):
    """Collects the tags with their attributes, and the words as they are read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.inside != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_headline_and_table_give_every_figure_with_its_interval(folder):
    text = Reader(render(folder)).text
    third, half = wilson(1, 3), wilson(1, 2)
    ends = f"[{100 * third.low:.1f}, {100 * third.high:.1f}]"
    assert f"Hallucinated successes 33.3 % {ends} 1 of 3 real failures" in text
    assert f"Missed successes 33.3 % {ends} 1 of 3 real successes" in text
    assert "Outcomes that agree 66.7 %" in text and "4 of 6 pairs" in text
    ends = f"[{100 * half.low:.1f}, {100 * half.high:.1f}]"
    assert f"50.0 % {ends} 1 of 2" in text
    # Imagined: 3 successes, 2 of them right, of 3 real ones. On the videos the same.
    assert "F1 of imagined verdicts 0.667 precision 66.7 %" in text


def test_errors_are_shared_between_classifier_and_dynamics(folder):
    text = Reader(render(folder)).text
    shares = text.partition("Whose errors they are")[2].partition("By step")[0]
    row = shares.partition(" shy ")[2].partition(" All ")
    assert re.findall(r"\d of \d|–", row[0]) == ["0 of 1", "0 of 1", "–", "–"]
    assert re.findall(r"\d of \d", row[2]) == ["1 of 3", "0 of 3", "1 of 3", "0 of 3"]


def test_what_there_is_none_of_is_said(tmp_path):
    text = Reader(render(write_audit(tmp_path / "a", [PAIRS[3]]))).text
    assert "Hallucinated successes – There are no real failures." in text
    assert "Examples" not in text


def test_a_policys_name_is_text_and_no_markup(folder):
    page = render(folder)
    assert "<b>bold" not in page
    text = Reader(page).text
    assert "<b>bold</b>/0" in text
    assert "wm-gym audit --policies '<b>bold</b>/0' shy" in text


def test_videos_that_the_table_names_are_inline_with_what_happened(folder):
    page = Reader(render(folder))
    shown = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    wanted = [base64.b64encode(film).decode() for film in FILMS.values()]
    assert shown == [f"data:video/mp4;base64,{film}" for film in wanted[:2]]
    assert (
        "Hallucinated success , start 0. Imagined: success at step 30, largest probability 0.97. "
        "Real: no success. Classifier on the real video: success at step 28." in page.text
    )


def test_the_page_loads_nothing(folder):
    add_everything(folder)
    text = render(folder)
    tags = Reader(text).tags
    loads = {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}
    found = [v for _, attrs in tags for k, v in attrs.items() if k in loads]
    assert found and all(value.startswith(("data:", "#")) for value in found)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= namespaces
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_it_says_where_it_comes_from(folder):
    text = Reader(render(folder)).text
    for said in ("0123456789abcdef", "2 cores of Z80, no GPU", "2026-11-22T12:00:00+00:00"):
        assert said in text
    assert "aaaa1111" in text and "bbbb2222" in text and "cccc0" in text and "cccc1" in text


def add_everything(folder: Path) -> None:
    """Write reports of the other commands, and film strips, beside the audit."""
    episodes = 12
    beside = {"world_model": "mine", "steps": 3, "episodes": episodes}
    add(folder, "fidelity.json", {**ORIGIN, **REPORT, **beside})
    Image.new("RGB", (4, 4)).save(folder / "strip.png")
    rows = [{"policy": "p", "noise": noise, **RATES} for noise in (0.0, 0.25)]
    agreement = {"pearson": 0.9134, "ranks": {"spearman": 0.8}}
    add(folder, "agreement.json", {**ORIGIN, "policies": rows, "agreement": agreement})
    add(folder, "counterfactuals.json", {**ORIGIN, **counterfactual_report(perturbed("hopeful"))})


def test_what_lies_beside_the_audit_is_shown(folder):
    add_everything(folder)
    page = Reader(render(folder))
    assert "12 held-out episodes" in page.text and "Without drift: no positions." in page.text
    assert "Drift is" not in page.text
    assert [attrs["src"][:15] for tag, attrs in page.tags if tag == "img"] == ["data:image/png;"]
    shown = page.text.partition("Agreement between the worlds")[2]
    assert "pearson 0.9134 ranks: spearman 0.8" in shown
    assert "● p 0.25 62.5 % [30.6, 86.3] 5 of 8 37.5 %" in shown
    assert "weak grip 100.0 % [51.0, 100.0] 4 of 4 50.0 %" in shown
    assert "held-out families 100.0 % [67.6, 100.0] 8 of 8 50.0 %" in shown
    assert "trained on the held-out families: weak grip, oscillation." in shown
    drawings = sum(tag == "svg" for tag, _ in page.tags)
    assert drawings == 3 + 2 + 1  # by step, fidelity, agreement


def test_the_drift_of_held_out_episodes_is_told_where_it_was_measured(folder):
    add_everything(folder)
    content = json.loads((folder / "fidelity.json").read_text())
    pictures = {name: {"q50": [1.0, 2.0, 3.0]} for name in ("imagined", "real")}
    drift = {"by_step": {"gripper": pictures, "object": pictures}}
    add(folder, "fidelity.json", content | {"drift": drift})
    page = Reader(render(folder))
    assert "Drift is the distance from where the simulator had things" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 3 + 1


def test_what_lies_in_other_folders_is_shown_too(folder, tmp_path):
    (tmp_path / "other").mkdir()
    add_everything(tmp_path / "other")
    text = render(folder, tmp_path / "none", tmp_path / "other")
    add_everything(folder)
    assert text == render(folder)


def test_what_went_wrong_is_counted_by_policy_and_told_beside_the_video(folder):
    text = Reader(render(folder)).text
    assert "is lifted, real and imagined gripper are apart 1 0" in text
    assert text.count("What went wrong: gripper drift.") == 1


def test_drift_and_the_usable_horizon_are_shown_where_they_were_measured(folder):
    assert "Usable horizon" not in Reader(render(folder)).text
    content = json.loads((folder / "audit.json").read_text())
    away = {thing: {"imagined": [2.0, 16.0], "real": [1.0, 1.0]} for thing in ("gripper", "object")}
    found = {"drift": away, "usable_horizon": 1, "usable_horizon_ends_by": ["gripper", "object"]}
    add(folder, "audit.json", content | found)
    page = Reader(render(folder))
    told = "Usable horizon 1 control steps, then gripper and object pass the limit"
    assert told in page.text and "gripper 10.0 mm, object 15.0 mm" in page.text
    assert "up to 8 steps early or late agrees" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 1
    add(folder, "audit.json", content | found | {"usable_horizon_ends_by": ["object"]})
    assert "then object passes the limit" in Reader(render(folder)).text
    add(folder, "audit.json", content | found | {"usable_horizon_ends_by": []})
    assert "control steps: the whole episode" in Reader(render(folder)).text


def test_what_does_not_is_not_mentioned(folder):
    page = Reader(render(folder))
    for title in ("Fidelity", "Agreement between", "Counterfactuals"):
        assert title not in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_facts_are_named_by_where_they_stand():
    content = {
        "n": 3,
        "deep_down": {"date": "today", "share": wilson(1, 2)._asdict(), "none": None},
        "gain": {"points": 2.0, "low": -1.0, "high": 5.0},
        "r": {"value": 0.9, "low": 0.71239, "high": 0.98},
        "ends": {"low": 0.5, "high": 1},
        "seen": True,
        "few": [1, 2.5],
        "many": list(range(9)),
        "rows": [{"a": 1}],
        "third": 1 / 3,
    }
    assert facts(content) == [
        ("n", "3"),
        ("deep down: date", "today"),
        ("deep down: share", str(wilson(1, 2))),
        ("deep down: none", "–"),
        ("gain", "+2.0 points [-1.0, 5.0]"),
        ("r", "0.9 [0.7124, 0.98]"),
        ("ends", "[0.5, 1]"),
        ("seen", "yes"),
        ("few", "1, 2.5"),
        ("third", "0.3333"),
    ]


@pytest.mark.parametrize("name", ["audit.json", "audit.csv"])
def test_a_folder_without_an_audit_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in {folder}; .* `wm-gym audit` has"):
        render(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pairs": 1', "is not JSON"),
        ("[1]", "is not what wm-gym writes"),
        ('{"by_step": {}}', "it lacks drift, episodes, steps, world_model, command"),
    ],
)
def test_a_report_that_is_none_is_named(folder, text, message):
    (folder / "fidelity.json").write_text(text)
    with pytest.raises(ValueError, match=f"fidelity.json .*{message}"):
        render(folder)


def test_the_same_folder_gives_the_same_page(folder):
    for name in ("a.html", "b.html"):
        write_page(folder / "new" / name, folder)
    first, second = sorted((folder / "new").iterdir())
    assert first.read_bytes() == second.read_bytes() == render(folder).encode()

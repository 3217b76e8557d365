"""Saving, finding and loading models; what goes wrong is said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from wm_gym import hub


@dataclass(frozen=True, slots=True)
class Part:
    """A nested config."""

    sizes: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """A config with what JSON does not have: tuples and a nested dataclass."""

    width: int = 2
    part: Part = field(default_factory=Part)
    other: Part | None = None


class Tiny(hub.Pretrained, nn.Module):
    """One layer and two buffers."""

    config_class = TinyConfig
    asset = "tiny"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 1)
        self.register_buffer("steps", torch.tensor(70_001))
        self.register_buffer("mean", torch.tensor(0.1))


class Other(Tiny):
    """The same shape under another name."""


@pytest.fixture
def tiny() -> Tiny:
    model = Tiny(TinyConfig(width=3, part=Part((4, 5)), other=Part((6,))))
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([[0.1, 0.25, -3.0]]))
    return model


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_model_comes_back_as_it_went(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "m")
    again = Tiny.from_pretrained(tmp_path / "m")
    assert again.config == tiny.config
    assert torch.equal(again.layer.weight, tiny.layer.weight)
    assert again.steps.item() == 70_001 and not again.training
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_model_is_kept_where_home_is(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained("~/kept")
    type(tiny).from_pretrained("~/kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_float16_file_loads_into_float32(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, dtype=torch.float16)
    again = Tiny.from_pretrained(tmp_path)
    assert again.layer.weight.dtype == torch.float32 and again.steps.item() == 70_001
    # 0.1 in half precision is 0.0999755859375.
    assert again.layer.weight.tolist() == [[0.0999755859375, 0.25, -3.0]]
    assert again.mean == torch.tensor(0.1)  # half a grid step is .2 mm of a metre
    assert tiny.layer.weight[0, 0] == torch.tensor(0.1)


def test_weight_too_large_for_float16_is_refused(tiny, tmp_path):
    tiny.layer.bias.data.fill_(70_000.0)
    with pytest.raises(ValueError, match="layer.bias does not fit into torch.float16"):
        tiny.save_pretrained(tmp_path, dtype=torch.float16)


def test_bundled_model_is_found_by_task_and_by_full_name(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    tiny.save_pretrained(tmp_path / "lift" / "tiny")
    assert hub.bundled() == ["lift/tiny"]
    for name in ("lift", "lift/tiny"):
        assert Tiny.from_pretrained(name).config == tiny.config


def test_folder_goes_before_a_bundled_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained(tmp_path / "assets" / "lift" / "tiny")
    Tiny(TinyConfig(width=1)).save_pretrained("lift")
    assert Tiny.from_pretrained("lift").config.width == 1


def test_the_folder_of_a_run_is_no_model(tiny, tmp_path, monkeypatch):
    """Such as runs/lift, seen from runs: it holds a config.json, too."""
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained(tmp_path / "assets" / "lift" / "tiny")
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift" / "config.json").write_text('{"task": "Lift"}')
    assert Tiny.from_pretrained("lift").config == tiny.config


def test_hub_repository_is_downloaded(tiny, tmp_path, monkeypatch):
    tiny.save_pretrained(tmp_path)
    asked = []

    def download(repo: str, file: str, *, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert Tiny.from_pretrained("me/tiny", revision="v1").config == tiny.config
    assert asked == [("me/tiny", "config.json", "v1"), ("me/tiny", "model.safetensors", "v1")]


def test_push_uploads_weights_config_and_card(tiny, monkeypatch):
    sent = {}

    class Api:
        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> None:
            sent["private"] = private

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            sent["files"] = {f.name: f.read_bytes() for f in Path(folder_path).iterdir()}
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(hub, "HfApi", Api)
    url = tiny.push_to_hub("me/tiny", private=True, metrics={"success": "50.0 %"})
    assert url.endswith("me/tiny/commit/1") and sent["private"] is True
    assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
    card = sent["files"]["README.md"].decode()
    assert 'Tiny.from_pretrained("me/tiny")' in card and "| success | 50.0 % |" in card


def test_card_says_licence_tags_paper_and_size(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, description="A tiny test.")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: wm_gym\nlicense: apache-2.0\ntags:\n- robotics\n")
    assert "A tiny test." in card and "2511.09515" in card and "4 weights" in card
    sections = ["Usage", "Inputs and outputs", "Intended use and limits", "Licence"]
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == sections
    tiny.save_pretrained(tmp_path, limits="Only for tests.", metrics={"loss": 0.5})
    card = (tmp_path / "README.md").read_text()
    assert "simulation" in card and "\n\nOnly for tests.\n\n## Measurements\n" in card
    assert card.index("| loss | 0.5 |\n\n## Licence\n") > 0


def test_card_written_by_hand_is_kept(tiny, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tiny.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["nowhere", "me/nowhere"])
def test_unknown_name_lists_the_bundled_ones(name, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    tiny.save_pretrained(tmp_path / "lift" / "tiny")
    with pytest.raises(FileNotFoundError, match=rf"No model '{name}'.*bundled: lift/tiny"):
        Tiny.from_pretrained(name)


def test_folder_without_weights_is_named(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        Tiny.from_pretrained(tmp_path)


def test_truncated_weights_are_named_with_their_mend(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"model.safetensors is not a whole.*download it again"):
        Tiny.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 4}))
    with pytest.raises(ValueError, match="does not fit the Tiny"):
        Tiny.from_pretrained(tmp_path)


def test_config_of_another_class_is_refused(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="describes a Tiny, not a Other"):
        Other.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["config", "nested"])
def test_unknown_config_key_is_refused(where, tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if where == "config" else config["part"])["depth"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: \w+ has no \['depth'\]; it has"):
        Tiny.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "Expecting"), ("[1]", "but a list"), ('"x"', "but a str")]
)
def test_config_that_is_no_json_object_is_named(tiny, tmp_path, text, problem):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config.json is not a JSON object \({problem}"):
        Tiny.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./nothing", "user/na--me"])
def test_a_name_that_the_hub_cannot_have_is_not_found(name):
    with pytest.raises(FileNotFoundError, match=rf"No model '{name}'.*it is not a name on the Hub"):
        Tiny.from_pretrained(name)


def test_a_path_is_not_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("it was"))
    with pytest.raises(FileNotFoundError, match="a path is not looked up on the Hub"):
        Tiny.from_pretrained(Path("mine/world_model"))


def test_a_fingerprint_tells_weights_config_and_precision_apart(tiny):
    other = Tiny(replace(tiny.config, other=Part((7,))))
    other.load_state_dict(tiny.state_dict())
    moved = Tiny(tiny.config)
    half = Tiny(tiny.config).bfloat16()
    half.load_state_dict(tiny.state_dict())
    found = [hub.fingerprint(model) for model in (tiny, other, moved, half)]
    assert len(set(found)) == 4
    same = Tiny(tiny.config)
    same.load_state_dict(tiny.state_dict())
    assert hub.fingerprint(same) == found[0]

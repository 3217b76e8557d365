"""World models by name: of the class that was saved."""

from __future__ import annotations

import json

import pytest
import torch

from wm_gym import hub
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig
from wm_gym.world_model import loading
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.transformer import VideoTransformer


@pytest.mark.parametrize("kind", [WorldModel, VideoTransformer])
def test_the_class_is_the_one_that_was_saved(kind, tiny, tiny_video, tmp_path):
    saved = kind(tiny if kind is WorldModel else tiny_video)
    saved.save_pretrained(tmp_path)
    loaded = load_world_model(tmp_path, device="cpu")
    assert type(loaded) is kind and loaded.config == saved.config and not loaded.training
    pairs = zip(loaded.parameters(), saved.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_bundled_models_are_found_by_their_task(tiny_video, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    VideoTransformer(tiny_video).save_pretrained(tmp_path / "lift" / "world_model")
    assert type(load_world_model("lift")) is VideoTransformer


def test_the_module_of_the_other_class_is_not_imported(tiny, tmp_path, monkeypatch):
    imported, load = [], loading.import_module
    monkeypatch.setattr(loading, "import_module", lambda name: imported.append(name) or load(name))
    WorldModel(tiny).save_pretrained(tmp_path)
    load_world_model(tmp_path)
    assert imported == ["wm_gym.world_model.model"]


def test_models_of_another_class_are_refused_with_both_names(tmp_path):
    SuccessClassifier(SuccessConfig(channels=8, side=2, vector=0)).save_pretrained(tmp_path)
    wanted = "holds a SuccessClassifier; a world model is a WorldModel or a VideoTransformer"
    with pytest.raises(ValueError, match=wanted):
        load_world_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"width": 3}))
    with pytest.raises(ValueError, match="holds a model of another library; a world model is"):
        ImaginedVectorEnv("Lift", world_model=tmp_path, success=tmp_path)

"""World models by name: of the class that was saved, whose module is imported only then."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wm_gym.hub import class_of

if TYPE_CHECKING:
    from wm_gym.world_model.model import WorldModel
    from wm_gym.world_model.transformer import VideoTransformer

CLASSES = {
    "WorldModel": "wm_gym.world_model.model",
    "VideoTransformer": "wm_gym.world_model.transformer",
}


def load_world_model(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> WorldModel | VideoTransformer:
    """Load a folder, a bundled world model ("lift") or a Hub repository, of whichever class it is.

    Options, results and errors are those of `Pretrained.from_pretrained`.
    """
    kind = world_model_class(name, revision)
    return kind.from_pretrained(name, device=device, revision=revision)


def world_model_class(
    name: str | Path, revision: str | None = None
) -> type[WorldModel] | type[VideoTransformer]:
    """Return the class of a saved world model; raises ValueError where it is another thing."""
    kind = class_of(name, "world_model", revision)
    if kind not in CLASSES:
        raise ValueError(
            f"{str(name)!r} holds a {kind}; a world model is a {' or a '.join(CLASSES)}. Name one "
            "that was saved as either."
        )
    return getattr(import_module(CLASSES[kind]), kind)

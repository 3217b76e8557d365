"""Models as folders of config.json, model.safetensors and a card: on disk, bundled, or on the Hub.

huggingface_hub's own mixin loads weights without checking names, drops unknown config keys and
uses the defaults when config.json is missing; here each of these is an error that says the mend.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from wm_gym.files import replacing
from wm_gym.tasks import TASKS

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
ASSETS = Path(__file__).parent / "assets"

_CARD = """---
library_name: wm_gym
license: apache-2.0
tags:
- robotics
- reinforcement-learning
- world-model
- wm_gym
---

# {name}

{description}

A `{kind}` of wm-gym, {parameters:,} weights. The method is WMPO
([arXiv 2511.09515](https://arxiv.org/abs/2511.09515)).

## Usage

Install wm-gym from a checkout with `pip install -e .` (Python 3.11 or later), then:

```python
from {module} import {kind}

model = {kind}.from_pretrained("{name}")
```

## Inputs and outputs

{interface}

## Intended use and limits

{limits}
{metrics}
## Licence

Apache-2.0, as wm-gym itself.
"""
_LIMITS = """\
For research in simulation. It has never been used on hardware, and is only reliable near the data
that it was trained on."""


def fingerprint(model: Any) -> str:
    """Tell models apart by config and weights, so that no result is taken for another model's.

    One that is no torch module is told by its config alone.
    """
    found = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(getattr(model, "state_dict", dict)().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


class Pretrained:
    """Mixin for an `nn.Module` built as `Model(config)` from a frozen dataclass, kept as `.config`.

    A subclass names the dataclass in `config_class`, and its bundled folder's name in `asset`:
    with `asset = "world_model"`, "lift" means `assets/lift/world_model`. `interface` says on its
    model cards what goes in and what comes out.
    """

    config_class: ClassVar[type]
    asset: ClassVar[str] = ""
    interface: ClassVar[str] = "See the docstring of the class."
    config: Any

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        description: str = "",
        limits: str = "",
        metrics: Mapping[str, object] | None = None,
    ) -> None:
        """Write config, weights and model card into `folder`, each aside and then renamed.

        `dtype=torch.float16` halves the file, but leaves buffers as they are: scales of what is
        measured. Loading restores the model's own dtype. An existing card is kept unless a
        `description`, `limits` (added to those of all models) or `metrics` (name -> value) come
        with the call.
        """
        assert isinstance(self, nn.Module)
        folder = Path(folder).expanduser()
        learnt = dict(self.named_parameters())
        weights = {}
        for name, tensor in self.state_dict().items():
            stored = tensor.detach().to("cpu", copy=True).contiguous()
            if dtype is not None and name in learnt:
                stored = stored.to(dtype)
                if stored.isinf().any() and not tensor.isinf().any():
                    raise ValueError(f"{name} does not fit into {dtype}; save with a wider dtype.")
            weights[name] = stored
        with replacing(folder / WEIGHTS) as aside:
            save_file(weights, aside, metadata={"format": "pt"})
        config = {"class": type(self).__name__, **asdict(self.config)}
        with replacing(folder / CONFIG) as aside:
            aside.write_text(json.dumps(config, indent=2) + "\n")
        if description or limits or metrics or not (folder / CARD).exists():
            with replacing(folder / CARD) as aside:
                ours = folder.is_relative_to(ASSETS)
                name = folder.relative_to(ASSETS).as_posix() if ours else folder.name
                aside.write_text(self._card(name, description, limits, metrics or {}))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load a folder, a bundled model ("lift") or a Hub repository ("user/name"), in that order.

        A `Path` is never looked up on the Hub.

        Returns the model in evaluation mode on `device` (CPU when None), in its own dtype whatever
        the file's. Raises FileNotFoundError (no such model), OSError (damaged weights) or
        ValueError (a model of another class, unknown config keys, weights that do not fit).
        """
        config_file, weights_file = _find(name, cls.asset, revision)
        model = cls(_read_config(config_file, cls))  # type: ignore[call-arg]
        try:
            weights = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"{weights_file} is not a whole safetensors file ({error}). Save or download it "
                "again; if it is a Git LFS pointer, run `git lfs pull`."
            ) from error
        assert isinstance(model, nn.Module)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{weights_file} does not fit the {cls.__name__} that {config_file} describes: "
                f"{error}. Take both files from the same save_pretrained."
            ) from error
        return model.to(device or "cpu").eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        dtype: torch.dtype | None = None,
        description: str = "",
        limits: str = "",
        metrics: Mapping[str, object] | None = None,
    ) -> str:
        """Upload to "user/name" on the Hub, created if need be; returns the commit's URL."""
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            card = self._card(repo_id, description, limits, metrics or {})
            (Path(folder) / CARD).write_text(card)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    def _card(self, name: str, description: str, limits: str, metrics: Mapping[str, object]) -> str:
        assert isinstance(self, nn.Module)
        rows = "".join(f"| {key} | {value} |\n" for key, value in metrics.items())
        measured = f"\n## Measurements\n\n| measure | value |\n| --- | --- |\n{rows}"
        return _CARD.format(
            name=name,
            description=description or f"A {type(self).__name__} for wm-gym.",
            module=type(self).__module__,
            kind=type(self).__name__,
            interface=self.interface,
            limits=f"{_LIMITS}\n\n{limits}".strip(),
            metrics=measured if rows else "",
            parameters=sum(p.numel() for p in self.parameters()),
        )


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(str(f.parent.relative_to(ASSETS).as_posix()) for f in ASSETS.rglob(CONFIG))


def class_of(name: str | Path, asset: str, revision: str | None = None) -> str:
    """Say of which class a saved model is, as its config.json does; see `from_pretrained`.

    `asset`: the bundled folder's name. Raises FileNotFoundError, and ValueError for a damaged file.
    """
    kind, _ = _read_json(_find(name, asset, revision)[0])
    return kind or "model of another library"


def _find(given: str | Path, asset: str, revision: str | None) -> tuple[Path, Path]:
    """Locate config and weights; downloads them when a name is a Hub repository's."""
    name, folder = str(given), Path(given).expanduser()
    if not all((folder / file).is_file() for file in (CONFIG, WEIGHTS)):  # such as a run's folder
        names = [n for n in (name, f"{name}/{asset}") if n in bundled()]
        folder = ASSETS / names[0] if names else folder
    if folder.is_dir():
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).exists():
                raise FileNotFoundError(
                    f"{folder} holds no {file}; expected a folder written by save_pretrained."
                )
        return folder / CONFIG, folder / WEIGHTS
    problem = "it is not a name on the Hub, which has the form user/name"
    ours = name.split("/")[0] in {task.lower() for task in TASKS}
    if ours:
        problem = f"names that begin with {name.split('/')[0]}/ are not looked up on the Hub"
    elif isinstance(given, Path):
        problem = "a path is not looked up on the Hub"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            return tuple(
                Path(hf_hub_download(name, f, revision=revision)) for f in (CONFIG, WEIGHTS)
            )
        except HFValidationError as error:
            problem = f"it is not a name on the Hub ({error.args[0].rstrip('.')})"
        except (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            problem = f"the Hub says: {error}"
    raise FileNotFoundError(
        f"No model {name!r}: there is no such folder, it is not bundled (bundled: "
        f"{', '.join(bundled()) or 'none'}), and {problem}."
    )


def _read_json(file: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"but a {type(values).__name__}")
        return values.pop("class", None), values
    except ValueError as error:
        raise ValueError(
            f"{file} is not a JSON object ({error}); save or download it again."
        ) from error


def _read_config(file: Path, cls: type[Pretrained]) -> Any:
    kind, values = _read_json(file)
    if kind != cls.__name__:
        raise ValueError(
            f"{file} describes a {kind or 'model of another library'}, not a {cls.__name__}."
        )
    try:
        return _build(cls.config_class, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error} It may come from another version of wm_gym.") from error


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    """A (nested) dataclass from JSON values; lists become tuples."""
    known = {field.name for field in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}; it has {sorted(known)}.")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value) for key, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    nested = next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)
    if isinstance(value, dict) and nested is not None:
        return _build(nested, value)
    if isinstance(value, list):
        return tuple(_value(None, item) for item in value)
    return value

"""A run is a folder: config.json, metrics.jsonl, TensorBoard, checkpoints, marks of done stages."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from wm_gym.files import replacing

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


PLACE = ("out", "workers")  # where and by how many processes: a run may be moved


class Run:
    """Where a run writes, and what it finds there when it is resumed.

    `free`: whether an option, by its dotted name ("grpo.iterations"), has not been used yet by any
    finished work in the folder. A resumed run may differ in these; config.json then says the new.

    Raises FileExistsError where the folder holds a run and `resume` is off, and ValueError where it
    holds a run with another config, but for its `PLACE` and what is `free`. An option that a
    dataclass did not have yet when the run began counts as its default.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any = None,
        resume: bool = False,
        free: Callable[[str], bool] = lambda option: False,
    ) -> None:
        self.folder = Path(folder)
        self.config = _plain(config) or {}
        path = self.folder / "config.json"
        if path.exists():
            if not resume:
                raise FileExistsError(
                    f"{self.folder} holds a run already; continue it with --resume, or choose "
                    "another folder."
                )
            if _differs(json.loads(path.read_text()), self.config, _usual(config), free, path):
                write_json(path, self.config)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, self.config)
        self._tensorboard: SummaryWriter | None = None
        self._peak = 0  # bytes that the stage under way has held, up to the last one within it

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and the same numbers to TensorBoard."""
        record = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def metrics(self) -> list[dict[str, float]]:
        """Every line logged so far; a line cut short by a kill is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]  # a whole line ends with a newline

    def rewind(self, step: int) -> None:
        """Forget what was logged at `step` and after, so that a resumed run logs it once."""
        kept = [record for record in self.metrics() if record["step"] < step]
        with replacing(self.folder / "metrics.jsonl") as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def save(self, state: dict[str, Any], name: str = "last") -> None:
        """Write checkpoints/`name`.pt, all or nothing."""
        with replacing(self.folder / "checkpoints" / f"{name}.pt") as aside:
            torch.save(state, aside)

    def load(self, name: str = "last") -> dict[str, Any] | None:
        """Read checkpoints/`name`.pt on the CPU, or None where there is none."""
        path = self.folder / "checkpoints" / f"{name}.pt"
        if not path.exists():
            return None
        return torch.load(path, map_location="cpu", weights_only=True)

    def stage(self, name: str, config: Any = None) -> Run:
        """Open training/`name`, the run folder of one stage of this run; always resumable.

        `config`: the stage's own, if it is not the run's.
        """
        chosen = self.config if config is None else config
        return Run(self.folder / "training" / name, chosen, resume=True)

    def is_done(self, name: str) -> bool:
        """Whether `once` has finished this piece of work."""
        return name in finished(self.folder)

    def once(self, name: str, work: Callable[[], Mapping[str, Any] | None]) -> dict[str, Any]:
        """Do `work` unless its marker done/`name`.json is there; return what it reported.

        The marker holds the report, the seconds that this last attempt took, and the most memory
        that this process held meanwhile, in bytes (0: not known; workers have their own).
        """
        path = self.folder / "done" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        began = time.perf_counter()
        before, self._peak = max(self._peak, peak_memory()), 0
        forget_peak_memory()
        report = dict(work() or {})
        report["seconds"] = round(time.perf_counter() - began, 2)
        report["peak_memory"] = max(self._peak, peak_memory())  # with the stages within it
        self._peak = max(before, report["peak_memory"])
        write_json(path, report)
        return report


def finished(folder: Path) -> dict[str, Path]:
    """Return the markers of the pieces of work that a run's folder has finished, by their names."""
    return {path.stem: path for path in sorted((folder / "done").glob("*.json"))}


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew, where the system can."""
    with suppress(OSError):
        CLEAR_REFS.write_text("5")  # proc(5): 5 resets the peak resident set size


def peak_memory() -> int:
    """The most memory that this process has held, bytes; 0 where the system does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * sizes[0] if sizes else 0


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all or nothing."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n")


def _plain(value: Any) -> Any:
    """As JSON gives it back: dataclasses are objects, tuples lists, paths strings."""

    def known(part: Any) -> Any:
        return dataclasses.asdict(part) if dataclasses.is_dataclass(part) else str(part)

    return json.loads(json.dumps(value, default=known))


def _usual(config: Any) -> dict[str, Any]:
    """What a dataclass's options are where nobody sets them; those without a default are not."""
    usual = {}
    for option in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        if option.default is not dataclasses.MISSING:
            usual[option.name] = option.default
        elif option.default_factory is not dataclasses.MISSING:
            usual[option.name] = option.default_factory()
    return _plain(usual)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names."""
    flat = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


def _differs(
    found: dict[str, Any],
    given: dict[str, Any],
    usual: dict[str, Any],
    free: Callable[[str], bool],
    path: Path,
) -> bool:
    """Whether a run goes on with other options; raises ValueError where it may not."""
    there, now = (_flat(usual) | _flat(config) for config in (found, given))
    names = sorted((there.keys() | now.keys()) - set(PLACE))
    differ = [name for name in names if there.get(name) != now.get(name)]
    if bound := [name for name in differ if not free(name)]:
        told = "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in bound)
        raise ValueError(
            f"{path} belongs to a run with another config ({told}); resume it with the same "
            "config, or choose another folder."
        )
    return bool(differ)

"""Episodes on disk, in robomimic's HDF5 schema, so that files of that family load as they are.

data/               attributes: total, env_args (JSON)
  demo_<i>/         attributes: num_samples, model_file, wm_success, wm_source, wm_start, wm_seed
    actions, rewards, dones, states, obs/{agentview_image, robot0_eef_pos, ...}    a row a step
    wm_final/{agentview_image, states, robot0_eef_pos, ...}          the row after the last action
mask/<source>, mask/success                                 filter keys: names of demos
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wm_gym.data.episode import Episode

IMAGE = "agentview_image"
_MEND = "Fetch or record it again, or leave it out with load(..., skip_bad=True) or --skip-bad."
_REWARDS = (
    "Expected rewards of 0 and 1, 1 where the task is done: shaped ones do not say when that is. "
    "Convert the file with robomimic's dataset_states_to_obs.py, without --shaped."
)


class EpisodeFile:
    """Reader of one robomimic file; opened once per process, so it may cross a fork or a pickle.

    Raises FileNotFoundError, OSError (truncated, not HDF5) or ValueError (another schema), naming
    the file and the mend. `skip_bad=True` leaves out bad episodes with one warning that lists them.
    `pictures=False` reads none, and takes files that hold none: frames then are empty, (0, 0, 3).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        filter_key: str | None = None,
        image_key: str = IMAGE,
        pictures: bool = True,
        skip_bad: bool = False,
    ) -> None:
        """Open and check every episode's shapes; pictures are not read yet."""
        self.path, self.image_key, self.pictures = Path(path), image_key, pictures
        self._handle: h5py.File | None = None
        self._pid = -1
        self._open_images: dict[int, h5py.Dataset] = {}  # finding them costs more than reading
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            raise ValueError(
                f"{self.path}: expected robomimic's schema with a group 'data'; found "
                f"{sorted(self._file)}. Convert it to data/demo_<i>/{{actions, obs/{image_key}}}."
            )
        try:
            self.env_args: dict[str, Any] = json.loads(data.attrs.get("env_args", "{}"))
        except ValueError as error:
            raise ValueError(
                f"{self.path}: data.attrs['env_args'] is not JSON: {error}."
            ) from error
        if not isinstance(self.env_args, dict):
            raise ValueError(
                f"{self.path}: data.attrs['env_args'] must be a JSON object as robomimic writes "
                f"it, got {self.env_args!r}; write it anew, or remove it."
            )
        if not isinstance(self._env_kwargs, dict):
            raise ValueError(
                f"{self.path}: env_args['env_kwargs'] must be a JSON object, as robomimic "
                f"writes it, got {self._env_kwargs!r}; write it anew, or remove it."
            )
        if self._env_kwargs.get("reward_shaping"):
            raise ValueError(f"{self.path}: env_args say reward_shaping. {_REWARDS}")
        self.lengths: list[int] = []
        self.names: list[str] = []
        bad = []
        for name in self._demos(data, filter_key):
            try:
                self.lengths.append(self._transitions(data[name]))
                self.names.append(name)
            except (KeyError, ValueError, OSError) as error:
                bad.append(f"{name}: {error}")
        if bad and not skip_bad:
            raise ValueError(
                f"{self.path}: {len(bad)} bad episode(s): {'; '.join(bad[:5])}. "
                "Record them again, or leave them out with skip_bad=True (commands: --skip-bad)."
            )
        if bad:
            warnings.warn(f"{self.path}: left out {'; '.join(bad)}", stacklevel=2)

    def __len__(self) -> int:
        """Episodes."""
        return len(self.names)

    def __enter__(self) -> EpisodeFile:
        """Return the reader; it closes with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open handle behind: another process opens its own."""
        return {**self.__dict__, "_handle": None, "_pid": -1, "_open_images": {}}

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None and self._pid == os.getpid():
            self._handle.close()
        self._handle, self._open_images = None, {}

    @property
    def filmed(self) -> bool:
        """Whether the first episode holds pictures, or would if there were one."""
        return not self.names or f"obs/{self.image_key}" in self._demo(0)

    def frames(self, i: int, a: int, b: int) -> np.ndarray:
        """Frames a to b - 1 of episode i, fresh, (b - a, H, W, 3) uint8; 0 <= a < b <= t + 1."""
        t = self.lengths[i]
        if not 0 <= a < b <= t + 1:
            raise ValueError(f"Episode {i} has frames 0 to {t}; cannot read [{a}, {b}).")
        if not self.pictures:
            return np.zeros((b - a, 0, 0, 3), np.uint8)
        with self._reading(i):
            images = self._images(i)
            if b <= len(images):
                return images[a:b]
            final = self._final(self._demo(i), self.image_key)
            return np.concatenate([images[a:], final]) if a < len(images) else final

    def actions(self, i: int) -> np.ndarray:
        """The actions of episode i, fresh, (t, 7) float32."""
        with self._reading(i):
            return self._demo(i)["actions"][: self.lengths[i]].astype(np.float32)

    def success(self, i: int) -> np.ndarray:
        """Whether the task was done after each action of episode i: reward 1; (t,) bool.

        A success on a last action that is left out, because nobody recorded what came of it, is
        told of the one before: recordings often stop there. All False, with a warning, where there
        are no rewards; ValueError where they are too few, or one is neither 0 nor 1.
        """
        demo, t = self._demo(i), self.lengths[i]
        if "rewards" not in demo:
            warnings.warn(f"{self.path} holds no rewards: all counts as failed.", stacklevel=3)
            return np.zeros(t, bool)
        with self._reading(i):
            rewards = demo["rewards"][: t + 1]
        if rewards.ndim != 1 or len(rewards) < t:
            raise ValueError(f"Expected {t} rewards, one an action, got {rewards.shape}.")
        if not np.isin(rewards, (0, 1)).all():
            raise ValueError(f"Rewards go from {rewards.min():g} to {rewards.max():g}. {_REWARDS}")
        success = rewards[:t] > 0
        success[-1] |= rewards[-1] > 0
        return success

    def low_dim(self, i: int) -> dict[str, np.ndarray]:
        """The observations of episode i that are no pictures, fresh, (t + 1, d) float32 each.

        One that was not recorded after the last action is left out, with a warning.
        """
        demo, t = self._demo(i), self.lengths[i]
        found = {}
        with self._reading(i):
            for key, column in demo["obs"].items() if "obs" in demo else ():
                if not isinstance(column, h5py.Dataset) or column.dtype.kind != "f":
                    continue
                if column.ndim not in (1, 2):
                    continue
                if (rows := self._rows(demo, key, column, t, np.float32)) is not None:
                    found[key] = rows.reshape(len(rows), -1)
                else:
                    warnings.warn(
                        f"{self.path}: left out obs/{key}, which has no row after the last action "
                        "as the pictures do; add it to next_obs.",
                        stacklevel=3,
                    )
        return found

    def source(self, i: int) -> str:
        """Who acted in episode i; "demonstrations" in files that do not say."""
        return str(self._demo(i).attrs.get("wm_source", "demonstrations"))

    @property
    def robot(self) -> str:
        """Which robot, or robots, the file is of, by its `env_args`; "" where they do not say."""
        told = self._env_kwargs.get("robots") or ""
        return told if isinstance(told, str) else ", ".join(told)

    def episode(self, i: int) -> Episode:
        """Episode i in full; OSError or ValueError where it is bad, naming file and episode."""
        demo, t = self._demo(i), self.lengths[i]
        with self._reading(i):
            states = self._rows(demo, "states", demo.get("states"), t, np.float64)
        try:
            return Episode(
                frames=self.frames(i, 0, t + 1),
                actions=self.actions(i),
                success=self.success(i),
                states=states,
                source=self.source(i),
                start=int(demo.attrs.get("wm_start", -1)),
                seed=int(demo.attrs.get("wm_seed", -1)),
                model_file=demo.attrs.get("model_file"),
                low_dim=self.low_dim(i),
                robot=self.robot,
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: {self.names[i]}: {error}") from error

    def episodes(self) -> Iterator[Episode]:
        """Every episode, in order."""
        return (self.episode(i) for i in range(len(self)))

    @property
    def _env_kwargs(self) -> Any:
        return self.env_args.get("env_kwargs") or {}

    @property
    def _file(self) -> h5py.File:
        if self._handle is None or self._pid != os.getpid():
            if not self.path.is_file():
                raise FileNotFoundError(_missing(self.path))
            try:
                self._handle, self._pid = h5py.File(self.path, "r"), os.getpid()
                self._open_images = {}
            except OSError as error:
                raise OSError(
                    f"{self.path} is not a whole HDF5 file ({error}): truncated, or of another "
                    f"format. {_MEND}"
                ) from error
        return self._handle

    def _images(self, i: int) -> h5py.Dataset:
        file = self._file  # first: opening it anew forgets the handles below
        if i not in self._open_images:
            self._open_images[i] = file[f"data/{self.names[i]}/obs/{self.image_key}"]
        return self._open_images[i]

    def _demo(self, i: int) -> h5py.Group:
        return self._file["data"][self.names[i]]

    def _demos(self, data: h5py.Group, filter_key: str | None) -> list[str]:
        if filter_key is None:
            return sorted((name for name in data if isinstance(data[name], h5py.Group)), key=number)
        masks = self._file.get("mask", {})
        if filter_key not in masks:
            raise ValueError(f"{self.path}: no filter key {filter_key!r}; has {sorted(masks)}.")
        return sorted((name.decode() for name in masks[filter_key][:]), key=number)

    def _transitions(self, demo: h5py.Group) -> int:
        """How many (frame, action, next frame) triples a demo holds; ValueError if it is bad."""
        if not self.pictures and "actions" in demo:
            count = int(demo.attrs.get("num_samples", len(demo["actions"])))
            return self._known(demo, count, "wm_final" in demo or "next_obs" in demo)
        if "actions" not in demo or f"obs/{self.image_key}" not in demo:
            raise ValueError(
                f"expected actions and obs/{self.image_key}, found {sorted(demo)} and, in obs, "
                f"{sorted(demo.get('obs', ()))} (pictures by another name: image_key=...; none, as "
                "in robosuite's raw demonstrations: render them with robomimic's "
                "dataset_states_to_obs.py)"
            )
        images, actions = demo[f"obs/{self.image_key}"], demo["actions"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"pictures must be uint8 (t, H, W, 3), are {images.dtype} {images.shape}"
            )
        count = int(demo.attrs.get("num_samples", len(actions)))
        if not len(images) == len(actions) == count:
            raise ValueError(f"{len(images)} pictures, {len(actions)} actions, num_samples {count}")
        return self._known(demo, count, self._final(demo, self.image_key) is not None)

    def _known(self, demo: h5py.Group, actions: int, final: bool) -> int:
        """Count the actions of which it is known what came: of the last one only where `final`.

        And where its state is told, if there are states: robomimic has next_obs, but no next state.
        """
        states = demo.get("states")
        told = states is None or len(states) > actions or self._final(demo, "states") is not None
        t = actions if final and told else actions - 1
        if t < 1:
            raise ValueError("holds no transition")
        return t

    def _rows(
        self, demo: h5py.Group, key: str, column: h5py.Dataset | None, t: int, dtype: type
    ) -> np.ndarray | None:
        """The t + 1 rows of a column, or None where the one after the last action is not there."""
        if column is None:
            return None
        rows = column[: t + 1].astype(dtype)
        if len(rows) == t:
            final = self._final(demo, key)
            return None if final is None else np.concatenate([rows, final.astype(dtype)])
        return rows

    def _final(self, demo: h5py.Group, key: str) -> np.ndarray | None:
        """The row after the last action, (1, ...), ours or robomimic's next_obs."""
        if f"wm_final/{key}" in demo:
            return demo[f"wm_final/{key}"][:]
        if f"next_obs/{key}" in demo:
            return demo[f"next_obs/{key}"][-1:]
        return None

    @contextmanager
    def _reading(self, i: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{self.path}: {self.names[i]}"
            raise OSError(f"{where} is damaged ({error}). {_MEND}") from error


def load(
    paths: str | Path | Iterable[str | Path], *, skip_bad: bool = False, **options: Any
) -> list[Episode]:
    """Read every episode of one or more files; `options` go to `EpisodeFile`.

    With `skip_bad=True` unreadable files and episodes are left out with a warning that names them.
    Warns of a file that an interrupted recording was to add to.
    """
    episodes: list[Episode] = []
    bad: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            with EpisodeFile(path, skip_bad=skip_bad, **options) as file:
                if waiting := _waiting(file.path, len(file._file["data"])):
                    warnings.warn(f"{path} is not finished: {waiting}", stacklevel=2)
                for i in range(len(file)):
                    try:
                        episodes.append(file.episode(i))
                    except (OSError, ValueError) as error:
                        if not skip_bad:
                            raise
                        bad.append(str(error))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    if bad:
        warnings.warn(f"Left out {'; '.join(bad)}", stacklevel=2)
    return episodes


def number(name: str) -> int:
    """12 of "demo_12"; demos sort by it, not as text. -1 of a name that ends in no number."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else -1


def _missing(path: Path) -> str:
    if waiting := _waiting(path):
        return f"{path} is not finished: {waiting}"
    return f"{path} does not exist; check the path, or collect it first."


def _waiting(path: Path, merged: int = 0) -> str:
    """What of an interrupted recording waits to be merged into `path`, which holds `merged`.

    And what to do about it; "" where nothing waits. A kill right after a merge leaves parts behind.
    """
    parts = path.with_name(path.name + ".parts")
    count = sum(number(part.stem) >= merged for part in parts.glob("demo_*.hdf5"))
    if not count:
        return ""
    return (
        f"{count} episodes wait in {parts}. Run the collection again (it resumes), or merge: "
        "EpisodeWriter(path, env_args).close()."
    )

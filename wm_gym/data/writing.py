"""Recording episodes so that no kill loses more than the one being written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wm_gym.data.episode import Episode
from wm_gym.data.reading import IMAGE, EpisodeFile, number
from wm_gym.files import replacing


class EpisodeWriter:
    """Record episodes to `path`; a `kill -9` at any moment loses at most the one being written.

    HDF5 files cannot be trusted after a hard kill, so each episode is a file of its own in
    `path + ".parts"` (itself a valid robomimic file), written aside and renamed. `close` merges
    them into `path`, again written aside and renamed. Opening a writer on an interrupted or a
    finished recording continues it: `len(writer)` says how many episodes are already there.

        with EpisodeWriter("demos.hdf5", env_args) as writer:
            for seed in range(len(writer), 100):
                writer.append(record(seed))

    Leaving the `with` block by an exception keeps the parts and does not merge them.
    """

    def __init__(self, path: str | Path, env_args: dict[str, Any]) -> None:
        """Open or continue `path`; raises ValueError if it was recorded with other `env_args`."""
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.env_args = json.loads(json.dumps(env_args))
        self._merged, self._closed = 0, False
        if self.path.exists():
            with EpisodeFile(self.path, pictures=False) as finished:
                self._check_env_args(finished.env_args, self.path)
                self._merged = len(finished)
                self._check_numbers(finished.names)
        # A kill between the final rename and the removal of the parts leaves parts already merged.
        for part in self._part_files():
            if number(part.stem) < self._merged:
                part.unlink()
        found = self._part_files()
        self._count = self._merged + len(found)
        numbers = [number(part.stem) for part in found]
        if numbers != list(range(self._merged, self._count)):
            raise ValueError(
                f"{self.parts} should hold episodes {self._merged}, {self._merged + 1}, ... without"
                f" gaps; found {numbers}. Remove the episodes after the gap, or the folder."
            )
        if found:
            with EpisodeFile(found[0], pictures=False) as part:
                self._check_env_args(part.env_args, found[0])

    def __len__(self) -> int:
        """Episodes written so far, merged or not."""
        return self._count

    def __enter__(self) -> EpisodeWriter:
        """Return the writer; it closes when the block ends without an exception."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Merge on success; keep the parts otherwise."""
        if kind is None:
            self.close()

    def episode(self, i: int) -> Episode:
        """Episode i of those written so far, without its pictures."""
        if i < self._merged:
            with EpisodeFile(self.path, pictures=False) as file:
                return file.episode(i)
        with EpisodeFile(self.parts / f"demo_{i}.hdf5", pictures=False) as part:
            return part.episode(0)

    def append(self, episode: Episode) -> None:
        """Write one episode; it is safe on disk when this returns.

        Raises ValueError for a source that cannot be a filter key, and where this writer is closed,
        or another one has written meanwhile.
        """
        if self._closed:
            raise ValueError(f"This writer of {self.path} is closed; open another to go on.")
        if not episode.source or "/" in episode.source or episode.source == "success":
            raise ValueError(
                "An episode's source is the name of a filter key: not empty, without '/', and not "
                f"'success', which names those that succeed; got {episode.source!r}."
            )
        self.parts.mkdir(parents=True, exist_ok=True)
        part = self.parts / f"demo_{self._count}.hdf5"
        if part.exists():
            raise ValueError(
                f"{part} is there already: another writer records to {self.path}, too."
            )
        with replacing(part) as aside, h5py.File(aside, "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps(self.env_args)
            data.attrs["total"] = len(episode)
            _write(data.create_group(part.stem), episode)
        self._count += 1

    def close(self) -> None:
        """Merge everything into `path` and remove the parts; harmless when called twice."""
        parts = self._part_files()
        if parts or not self.path.exists():
            with replacing(self.path) as aside:
                if self.path.exists():
                    shutil.copyfile(self.path, aside)
                with h5py.File(aside, "a") as file:
                    data = file.require_group("data")
                    data.attrs["env_args"] = json.dumps(self.env_args)
                    for part in parts:
                        with h5py.File(part, "r") as one:
                            one.copy(f"data/{part.stem}", data)
                    data.attrs["total"] = sum(len(demo["actions"]) for demo in data.values())
                    _write_masks(file)
            self._merged = self._count
        shutil.rmtree(self.parts, ignore_errors=True)
        self._closed = True

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("demo_*.hdf5"), key=lambda part: number(part.stem))

    def _check_numbers(self, names: list[str]) -> None:
        if names != [f"demo_{i}" for i in range(len(names))]:
            raise ValueError(
                f"{self.path} should hold demo_0, demo_1, ... without gaps to be continued; found "
                f"{len(names)} episodes from {names[0]} to {names[-1]}. Write to another file; "
                "several are loaded together as easily."
            )

    def _check_env_args(self, found: dict[str, Any], path: Path) -> None:
        if found != self.env_args:
            raise ValueError(
                f"{path} was recorded with env_args {found}, not {self.env_args}; continue it with "
                "the same settings, or write to another file."
            )


def _write(demo: h5py.Group, episode: Episode) -> None:
    t = len(episode)
    # Uncompressed: on rendered pictures LZF saves 40 % of the disk and reads 7 times slower.
    if episode.frames.size:
        chunk = (1, *episode.frames.shape[1:])
        demo.create_dataset(f"obs/{IMAGE}", data=episode.frames[:t], chunks=chunk)
        demo.create_dataset(f"wm_final/{IMAGE}", data=episode.frames[t:], chunks=chunk)
    demo["actions"] = episode.actions
    demo["rewards"] = episode.success.astype(np.float32)
    dones = episode.success.astype(np.int64)
    dones[-1] = 1
    demo["dones"] = dones
    if episode.states is not None:
        demo["states"], demo["wm_final/states"] = episode.states[:t], episode.states[t:]
    for key, rows in episode.low_dim.items():
        demo[f"obs/{key}"], demo[f"wm_final/{key}"] = rows[:t], rows[t:]
    if episode.model_file is not None:
        demo.attrs["model_file"] = episode.model_file
    demo.attrs["wm_success"] = episode.succeeded
    demo.attrs["wm_source"] = episode.source
    demo.attrs["wm_start"] = episode.start
    demo.attrs["wm_seed"] = episode.seed
    demo.attrs["num_samples"] = t


def _write_masks(file: h5py.File) -> None:
    """Write the filter keys of sources and of success anew; others in the file stay as they are.

    An episode that does not say whether it succeeded stays in "success" if it was there.
    """
    kept = file.require_group("mask")
    masks: dict[str, list[bytes]] = {}
    succeeded = set(kept["success"][:]) if "success" in kept else set()
    for name in sorted(file["data"], key=number):
        attributes = file["data"][name].attrs
        masks.setdefault(str(attributes.get("wm_source", "demonstrations")), []).append(
            name.encode()
        )
        if attributes.get("wm_success", name.encode() in succeeded):
            masks.setdefault("success", []).append(name.encode())
    for key, names in masks.items():
        kept.pop(key, None)
        kept[key] = np.array(names)

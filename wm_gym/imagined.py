"""The imagined world: a world model draws the frames, a success classifier ends the episode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wm_gym.checks import DTYPES, check_choice, check_limit, check_pair
from wm_gym.contract import WorldVectorEnv
from wm_gym.data.measurements import measurements
from wm_gym.futures import Futures
from wm_gym.hub import fingerprint
from wm_gym.noise import row_noise
from wm_gym.state import Played, map_arrays

if TYPE_CHECKING:
    from wm_gym.success.classifier import SuccessClassifier
    from wm_gym.world_model.model import WorldModel


class ImaginedVectorEnv(WorldVectorEnv):
    """Episodes of a task that are played inside a world model (WMPO, arXiv 2511.09515).

    `world_model`, `success`: a bundled name (default: the task's), a folder, a hub id, or a live
    module, used as it is. Named ones are loaded once a process and shared. `dtype="bfloat16"` runs
    them under autocast. `compile`: by torch.compile, which takes the first steps a minute and pays
    for large models on a GPU; whoever shares the world model has it compiled, too, and may see
    other bits. `deterministic`: a call for every row, and one thread, so that a row's pictures are
    the same bits in any batch, at the price of speed: kernels may round a row differently by how
    many there are, by its place among them and by the number of threads. Everything else is
    WorldVectorEnv's.

    info's `uncertainty` is how far apart the world model's members are about each of the episode's
    steps, added up; the first step with more than `max_uncertainty` is an episode's last, and no
    success. A step succeeds where at least hold_k of its last hold_n windows have a probability of
    at least the classifier's threshold. With `unanimous` each member imagines the episode alone,
    too (TS-infinity of PETS, Chua et al. 2018, arXiv 1805.12114), and a step succeeds where the
    success in what is shown holds and every member has had one, then or before: a policy that
    practises is paid less often for what its world is wrong about. It takes the time of the
    dynamics once more, and once for each member where they have a grid; without several members it
    changes nothing.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        world_model: str | Path | WorldModel | None = None,
        success: str | Path | SuccessClassifier | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        compile: bool = False,
        deterministic: bool = False,
        max_uncertainty: float | None = None,
        unanimous: bool = False,
        **contract: Any,
    ) -> None:
        """Load the models, those that are bundled if neither is named.

        Raises FileNotFoundError where there are none by that name, and ValueError for one of them
        without the other.
        """
        super().__init__(task, num_envs, **contract)
        check_choice("dtype", dtype, DTYPES)
        self.dtype = dtype
        self.deterministic = deterministic
        self.max_uncertainty = check_limit("max_uncertainty", max_uncertainty)
        check_pair(world_model, success)
        bundled = self.task.name.lower()
        self.world_model = _world_model(world_model or bundled, device)
        self.device = torch.device(self.world_model.device)
        self.success = _success_classifier(success or bundled, self.device)
        self._check_models()
        if compile:
            for part in self.world_model.heavy():
                part.compile()
        pictures = self.pool.frames[:, None]  # (s, T, H, W, 3), what each start remembers
        if self.pool.past is not None:
            pictures = np.concatenate([self.pool.past, pictures], axis=1)
        self._pool_frames = torch.as_tensor(pictures, device=self.device)
        self._pool_robot = self._measured_starts()  # (s, q), where it is known
        self.unanimous = unanimous and getattr(self.world_model.config, "members", 1) > 1
        # Of the n rows: what is shown, then, where it must be unanimous, what each member imagines.
        self._futures: tuple[Futures, ...] = ()

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the models and of the rows' memories."""
        self.world_model = self.success = None
        self._futures = ()
        self._pool_frames = self._pool_robot = None

    @cached_property
    def made_of(self) -> dict[str, str]:
        """Fingerprints of what states refer to, starts and models, taken when first asked for.

        Weights that are changed later are not noticed.
        """
        models = {"world_model": self.world_model, "success": self.success}
        return super().made_of | {name: fingerprint(model) for name, model in models.items()}

    @torch.inference_mode()
    def _begin(self, rows: np.ndarray, starts: np.ndarray) -> Tensor:
        distinct, which = np.unique(starts, return_inverse=True)  # a group's rows share a start
        chosen = torch.from_numpy(distinct).to(self.device)
        frames = self._pool_frames[chosen]  # (p, T, H, W, 3)
        robot = None if self._pool_robot is None else self._pool_robot[chosen]
        self._remember(rows, frames, which, robot)
        return frames[torch.from_numpy(which).to(self.device), -1]

    @torch.inference_mode()
    def _begin_from_frames(
        self, rows: np.ndarray, frames: np.ndarray, actions: np.ndarray | None
    ) -> Tensor:
        past = torch.as_tensor(frames, device=self.device)
        self._remember(rows, past, np.arange(len(rows)))
        return past[:, -1]

    def _save(self, rows: np.ndarray) -> tuple[Futures, ...]:
        where = torch.from_numpy(rows).to(self.device)
        return tuple(futures.take(where) for futures in self._futures)

    @torch.inference_mode()
    def _load(self, rows: np.ndarray, hidden: tuple[Futures, ...]) -> None:
        where = torch.from_numpy(rows).to(self.device)
        hidden = map_arrays(lambda part: torch.as_tensor(part, device=self.device), hidden)
        for futures, saved in zip(self._futures, hidden, strict=True):
            futures.put(where, saved)

    @torch.inference_mode()
    def _play(self, rows: np.ndarray, actions: np.ndarray, steps: np.ndarray) -> Played:
        if not self.deterministic:
            return self._imagine(rows, actions, steps)
        with one_thread():
            alone = [slice(i, i + 1) for i in range(len(rows))]
            return _joined([self._imagine(rows[i], actions[i], steps[i]) for i in alone])

    def _remember(
        self, rows: np.ndarray, frames: Tensor, which: np.ndarray, robot: Tensor | None = None
    ) -> None:
        """Fill the memories of rows (m,): the past of row i is frames[which[i]].

        frames: uint8 (p, T, H, W, 3), each of which is read once; robot: float32 (p, q), what is
        measured where they end.
        """
        if not self.deterministic:
            return self._read(rows, frames, which, robot)
        with one_thread():
            for i in range(len(frames)):
                mine = rows[which == i]
                told = None if robot is None else robot[i : i + 1]
                self._read(mine, frames[i : i + 1], np.zeros_like(mine), told)

    def _read(
        self, rows: np.ndarray, frames: Tensor, which: np.ndarray, robot: Tensor | None
    ) -> None:
        where, which = (torch.from_numpy(x).to(self.device) for x in (rows, which))
        with self._autocast():
            memory = self.world_model.begin(frames, robot)
            latents = self.world_model.encode(frames, last=self.success.config.window - 1)
            begun = [Futures.begin(self.success, memory, latents)]
        if self.unanimous:
            begun.append(begun[0].repeated(self.world_model.config.members))
        if not self._futures:
            everyone = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
            self._futures = tuple(futures.take(everyone) for futures in begun)
        for futures, new in zip(self._futures, begun, strict=True):
            futures.put(where, new.take(which))

    def _imagine(self, rows: np.ndarray, actions: np.ndarray, steps: np.ndarray) -> Played:
        """Play rows (m,) for K steps; all K frames are imagined, and cut where the row ends."""
        m, k = actions.shape[:2]
        where = torch.from_numpy(rows).to(self.device)
        shape = self.world_model.noise_shape(k)
        keys = self.seeds[rows], self.episode[rows], self.elapsed[rows]
        taken = torch.from_numpy(actions).to(self.device)
        shown = self._futures[0].take(where)
        with self._autocast():
            noise = row_noise(*keys, shape, self.device)
            # latents (m, K, ...), apart (m, K)
            memory, latents, apart = self.world_model.imagine(shown.memory, taken, noise)
            # probability, held: (m, K)
            after, probability, held, _ = shown.watched(self.success, memory, latents)
            self._futures[0].put(where, after)
            if self.unanimous:
                alone = self._futures[1].take(where)
                memory, own = self.world_model.imagine_alone(alone.memory, taken, noise)
                after, *_, seen = alone.watched(self.success, memory, own)  # (m, e, K)
                self._futures[1].put(where, after)
                held = held & seen.all(1)

        # The one wait for the device in a step.
        told = torch.stack([probability, held.float(), apart]).cpu().numpy()
        uncertainty = self._uncertainty[rows, None] + told[2].cumsum(1)
        known = uncertainty <= self.max_uncertainty
        steps = np.minimum(steps, known.sum(1) + 1)
        probability = told[0]
        played, success = cut((told[1] > 0) & known, steps, self.ignore_terminations)
        last = torch.from_numpy(played - 1).to(self.device)
        if not self.return_frames:
            image = self._decode(latents[torch.arange(m, device=self.device), last][:, None])
            return Played(image[:, 0], success, probability, played, uncertainty)
        frames = self._decode(latents)  # (m, K, H, W, 3)
        every = torch.arange(m, device=self.device)[:, None]
        frames = frames[every, torch.arange(k, device=self.device).clamp_max(last[:, None])]
        return Played(frames[:, -1], success, probability, played, uncertainty, frames)

    def _decode(self, latents: Tensor) -> Tensor:
        with self._autocast():
            return self.world_model.decode(latents)

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _measured_starts(self) -> Tensor | None:
        """What robots measure at the pool's starts, where the world model asks for it."""
        names = getattr(self.world_model.config, "robot", ())
        if not names or not self.pool.low_dim:
            return None
        rows = measurements(self.pool.low_dim, names, len(self.pool), "The pool of starts")
        return torch.from_numpy(rows).to(self.device)

    def _check_models(self) -> None:
        config = self.world_model.config
        size, most = config.image_size, config.max_chunk
        if self.pool.frames.shape[1:3] != (size, size):
            height, width = self.pool.frames.shape[1:3]
            raise ValueError(
                f"The world model draws {size} x {size} pictures and the starts are {height} x "
                f"{width}; use starts recorded at the model's size."
            )
        taken, given = getattr(config, "action_dim", None), self.task.action_dim
        if taken not in (None, given):
            raise ValueError(
                f"The world model takes actions of {taken} values, and those of {self.task.name} "
                f"have {given}; use one that was trained on the task."
            )
        if math.isfinite(self.max_uncertainty) and getattr(self.world_model, "certain", False):
            raise ValueError(
                "max_uncertainty needs a world model with several members, which can disagree; "
                "this one is never uncertain. Leave it out, or train one with more members."
            )
        came, wanted = config.latent_size, self.success.config.latent_size
        if came != wanted:
            raise ValueError(
                f"The world model's latents hold {came} numbers and the success classifier reads "
                f"{wanted}; use two that were trained together."
            )
        if self.chunk > most:
            raise ValueError(
                f"This world model imagines at most {most} steps a call, got chunk={self.chunk}."
            )


def cut(
    success: np.ndarray, steps: np.ndarray, ignore_terminations: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Say how many of a row's K steps count, int64 (m,), and which succeeded, bool (m, K).

    success: bool (m, K), verdicts on all K frames; steps: (m,), the most that a row may play. The
    first success ends a row's steps unless `ignore_terminations`.
    """
    place = np.arange(success.shape[1])
    success = success & (place < steps[:, None])
    if ignore_terminations:
        return steps.copy(), success
    played = np.where(success.any(1), success.argmax(1) + 1, steps)
    return played, success & (place < played[:, None])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _joined(parts: list[Played]) -> Played:
    """Join the rows of parts."""
    fields = list(zip(*parts, strict=True))
    frames = None if fields[5][0] is None else torch.cat(fields[5])
    return Played(torch.cat(fields[0]), *map(np.concatenate, fields[1:5]), frames)


def _world_model(given: Any, device: Any) -> WorldModel:
    if isinstance(given, torch.nn.Module):
        return given.eval() if device is None else given.to(device).eval()
    return _load_world_model(str(given), _device(device), _written(given))


def _success_classifier(given: Any, device: torch.device) -> SuccessClassifier:
    if isinstance(given, torch.nn.Module):
        return given.to(device).eval()
    return _load_success_classifier(str(given), device, _written(given))


def _device(device: Any) -> torch.device:
    found = torch.cuda.is_available()
    chosen = torch.device(("cuda" if found else "cpu") if device is None else device)
    if chosen.type == "cuda" and not found:
        raise ValueError(
            f"device={str(device)!r} needs a GPU and a PyTorch built for it, and torch finds none; "
            "leave device out."
        )
    return chosen


def _written(name: str | Path) -> tuple[int, ...]:
    """Say when the files of a folder were written, in ns: what is written anew is loaded anew."""
    from wm_gym.hub import CONFIG, WEIGHTS

    files = [Path(name).expanduser() / file for file in (CONFIG, WEIGHTS)]
    return tuple(file.stat().st_mtime_ns for file in files if file.is_file())


@lru_cache(maxsize=8)
def _load_world_model(name: str, device: torch.device, written: tuple[int, ...]) -> WorldModel:
    from wm_gym.world_model.loading import load_world_model

    return load_world_model(name, device=device)


@lru_cache(maxsize=8)
def _load_success_classifier(
    name: str, device: torch.device, written: tuple[int, ...]
) -> SuccessClassifier:
    from wm_gym.success.classifier import SuccessClassifier

    return SuccessClassifier.from_pretrained(name, device=device)

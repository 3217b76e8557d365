"""How fast the imagined world is, where its time goes, and how fast robosuite is beside it.

python benchmarks/world_model_speed.py --path docs/results/speed.json
python benchmarks/world_model_speed.py --preset paper --num-envs 16 --compile --no-real  # on a GPU
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

import wm_gym  # noqa: F401  registers the ids
from trainers.cli import set_threads
from wm_gym.checks import check_choice
from wm_gym.evaluation.paired import aligned, provenance, write_result
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.starts import StartPool, load_starts
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.sizes import SIZES, costs, flop
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig

CLOCKS = (8, 64, 512)  # control steps into an episode at which a step must cost the same
REAL = {
    "real_steps_per_second": {},
    "real_every_picture": {"return_frames": True},
    "real_every_picture_full_meshes": {"return_frames": True, "full_meshes": True},
}


@dataclass(frozen=True, slots=True)
class SpeedConfig:
    """What is measured."""

    task: str = "Lift"
    preset: str | None = None
    """A size of `wm-gym presets`, with random weights, instead of the task's own world."""
    compile: bool = False
    """Compile the world model, which takes the first steps a minute."""
    num_envs: tuple[int, ...] = (1, 16, 64, 256)
    """Environments side by side; each number is a row of the table."""
    chunk: int = 8
    seconds: float = 3.0
    """Of one measurement."""
    real: bool = True
    """Measure robosuite, too: as many environments, as many actions a step."""
    path: Path | None = None
    """Where to write the numbers as JSON; rows of other presets and machines stay there."""


@cache
def untrained(task: str, preset: str) -> dict[str, Any]:
    """A world of a preset's size that has learnt nothing, as options of an environment."""
    check_choice("preset", preset, tuple(SIZES))
    shape = SIZES[preset]
    video = isinstance(shape, VideoTransformerConfig)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = VideoTransformer(shape) if video else WorldModel(shape)
        config = SuccessConfig(channels=0, vector=shape.latent_size)
        if shape.channels:
            rest = shape.latent_size - shape.channels * shape.side**2
            config = SuccessConfig(shape.channels, shape.side, rest)
        judge = SuccessClassifier(config)
    pool = load_starts(task, "train")
    times = shape.image_size // pool.frames.shape[1]
    frames = pool.frames[:64].repeat(times, axis=1).repeat(times, axis=2)
    starts = StartPool(frames, pool.states[:64], pool.task, pool.split)
    return {"world_model": model, "success": judge, "starts": starts}


def make(config: SpeedConfig, n: int, backend: str, **options: Any) -> Any:
    """Make rows that never end early."""
    if backend == "imagined":
        options = {"dtype": "bfloat16", "compile": config.compile} | options
        if config.preset:
            options |= untrained(config.task, config.preset)
    return gym.make_vec(
        f"wm_gym/{config.task}-v0",
        num_envs=n,
        backend=backend,
        autoreset_mode="disabled",
        ignore_terminations=True,
        **options,
    )


def steps_per_second(env: gym.vector.VectorEnv, seconds: float) -> float:
    """Control steps of all rows a second of `step`; the first step, which warms up, is left out."""
    world, rng = env.unwrapped, np.random.default_rng(0)
    times: list[float] = []
    while sum(times[1:]) < seconds or len(times) < 3:
        if len(times) % max(1, world.horizon // (world.chunk or 1)) == 0:
            env.reset(seed=0)
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        began = time.perf_counter()
        env.step(action)
        times.append(time.perf_counter() - began)
    return env.num_envs * (world.chunk or 1) / float(np.median(times[1:]))


def parts(env: ImaginedVectorEnv, seconds: float) -> dict[str, float]:
    """Milliseconds of what a step is made of: to imagine, to judge, to draw the last pictures.

    Of a video transformer also: to pass what is remembered through it, which is part of `imagine`.
    """
    model, judge, n, k = env.world_model, env.success, env.num_envs, env.chunk
    frames = torch.as_tensor(env.pool.frames[np.arange(n) % len(env.pool)], device=env.device)
    actions = torch.zeros(n, k, env.task.action_dim, device=env.device)
    noise = torch.randn(n, *model.noise_shape(k), device=env.device)
    with torch.inference_mode(), env._autocast():
        memory = model.begin(frames[:, None])
        latents = model.imagine(memory, actions, noise)[1]
        past = judge.embed(latents[:, :1]).expand(-1, judge.config.window - 1, -1)
        calls: dict[str, Callable[[], Any]] = {}
        if isinstance(model, VideoTransformer):
            seen = torch.cat([memory.anchor[:, None], memory.recent], dim=1)
            calls["remember"] = lambda: model.remember(seen)  # in what `imagine` takes
        calls |= {
            "imagine": lambda: model.imagine(memory, actions, noise),
            "judge": lambda: judge.probability(torch.cat([past, judge.embed(latents)], 1)),
            "draw": lambda: model.decode(latents[:, -1:]),
        }
        share = seconds / len(calls)
        return {f"{name}_ms": 1000 * seconds_of(call, share) for name, call in calls.items()}


def seconds_of(call: Callable[[], Any], duration: float) -> float:
    """Median seconds of a call, repeated for `duration` seconds after one to warm up."""
    times: list[float] = []
    while sum(times[1:]) < duration or len(times) < 3:
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def matrix_rate(device: torch.device, seconds: float) -> float:
    """FLOP a second of a product of two bfloat16 matrices of 2,048 rows, 8,192 on a GPU."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, seconds)


def step_flop(env: ImaginedVectorEnv) -> int:
    """FLOP of one step of one row: a chunk imagined and judged, its last picture drawn."""
    cost, judge = costs(env.world_model.config), env.success
    with torch.device("meta"), torch.no_grad():
        copy: nn.Module = type(judge)(judge.config)
        latents = torch.zeros(1, env.chunk, judge.config.latent_size)
        window = torch.zeros(1, judge.config.window - 1 + env.chunk, judge.config.features)
        judged = flop(lambda: (copy.embed(latents), copy.logits(window)))
    return env.chunk * cost.frame_flop + cost.picture_flop + judged


def row(config: SpeedConfig, n: int, chunk: int, rate: float) -> dict[str, Any]:
    """Measure n environments with `chunk` actions a step, in both worlds."""
    horizon = 8 * chunk
    found: dict[str, Any] = {"num_envs": n, "chunk": chunk}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with closing(make(config, n, "imagined", chunk=chunk, horizon=horizon)) as env:
        world = env.unwrapped
        speed = steps_per_second(env, config.seconds)
        found["steps_per_second"] = speed
        found["flops_share"] = step_flop(world) * speed / chunk / rate
        found |= parts(world, config.seconds)
    options = {"chunk": chunk, "horizon": horizon}
    with closing(make(config, n, "imagined", return_frames=True, **options)) as env:
        found["every_picture"] = steps_per_second(env, config.seconds)
    if config.real:
        for name, more in REAL.items():
            with closing(make(config, n, "real", **more, **options)) as env:
                found[name] = steps_per_second(env, config.seconds)
    if torch.cuda.is_available():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def clocks(config: SpeedConfig, n: int) -> dict[str, float]:
    """Seconds of a step that begins so many control steps into an episode, or is the next to."""
    found = {}
    horizon = CLOCKS[-1] + 4 * config.chunk
    with closing(make(config, n, "imagined", chunk=config.chunk, horizon=horizon)) as env:
        actions = np.zeros(env.action_space.shape, np.float32)
        env.reset(seed=0)
        times = []
        for _ in range(math.ceil(horizon / config.chunk)):
            began = time.perf_counter()
            env.step(actions)
            times.append(time.perf_counter() - began)
    for clock in CLOCKS:  # the median of three steps
        first = math.ceil(clock / config.chunk)
        found[str(clock)] = float(np.median(times[first : first + 3]))
    return found


def main(config: SpeedConfig) -> None:
    """Measure, print a table, and write it where asked."""
    set_threads()
    with closing(make(config, 1, "imagined")) as env:
        device, shape = env.unwrapped.device, env.unwrapped.world_model.config
    cost = costs(shape)  # what does not change it may differ from the preset's
    preset = next((name for name, size in SIZES.items() if costs(size) == cost), "its own")
    machine = provenance([0])["machine"]
    name = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    rate = matrix_rate(device, config.seconds)
    print(f"{name}: {rate / 1e9:,.0f} GFLOP/s in products of bfloat16 matrices")
    rows = []
    single = [(1, 1)] if config.preset is None else []
    for n, chunk in [*single, *((n, config.chunk) for n in config.num_envs)]:
        rows.append({"device": name, "preset": preset, **row(config, n, chunk, rate)})
        print(rows[-1], flush=True)
    print("\n".join(aligned([list(rows[0]), *([_cell(v) for v in r.values()] for r in rows)])))
    content: dict[str, Any] = {"matrix_flops": rate, "rows": rows}
    if config.preset is None:
        content["step_seconds"] = clocks(config, 16)
        print("Seconds of a step of 16 rows, by the episode's clock:", content["step_seconds"])
    if config.path:
        keep(config.path, {**provenance([0]), **content})


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write what was measured, beside what the file holds of other presets and machines.

    The rows of these say how they were made, and in which time steps were taken then.
    """
    if path.exists():
        old = json.loads(path.read_text())
        mine = {(row["device"], row["preset"]) for row in content["rows"]}
        told = (*provenance([]), "matrix_flops", "step_seconds")
        made = {key: old[key] for key in told if key in old}
        others = [row for row in old["rows"] if (row["device"], row["preset"]) not in mine]
        content["rows"] = [*content["rows"], *({"made": made, **row} for row in others)]
    write_result(path, content)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))

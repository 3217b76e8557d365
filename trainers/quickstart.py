"""The main job in minutes: improve the bundled policy in imagination, test it in robosuite."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.token import TokenVLA
from trainers import grpo
from trainers.rollout import autocast, evaluate, make_env
from trainers.wmpo import device
from wm_gym.checks import check_count, check_workers
from wm_gym.data.moments import load_moments, with_moments
from wm_gym.evaluation.paired import provenance, result, run_row, table, write_result
from wm_gym.evaluation.video import hold, side_by_side, tile, write_video
from wm_gym.real.simulation import check_robosuite
from wm_gym.runs import Run, finished
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task


@dataclass(frozen=True, slots=True)
class QuickstartConfig:
    """A short GRPO run from bundled weights, and its real test."""

    task: str = "Lift"
    out: Path = Path("runs/quickstart")
    episodes: int = 128
    """Real test episodes of each policy, on the same starts."""
    imagined_envs: int = 128
    workers: int | None = None
    grpo: grpo.GRPOConfig = field(default_factory=lambda: grpo.GRPOConfig(iterations=20))


def quickstart(config: QuickstartConfig) -> None:
    """Improve the bundled policy by GRPO in the imagined world, then test both in robosuite."""
    check(config)
    run = Run(config.out, config, resume=True)
    bundled = f"{config.task.lower()}/policy_base"
    base, policy = (TokenVLA.from_pretrained(bundled, device=device()) for _ in range(2))
    print("1/3  GRPO inside the imagined world (bundled world model and success classifier)")
    run.once("grpo", lambda: _improve(config, policy, run))
    policy = TokenVLA.from_pretrained(run.folder / "policy_improved", device=device())
    print("2/3  Real robosuite, same test starts for both policies")
    played = {
        f"{world}_{name}": run.once(
            f"{world}_{name}", lambda w=world, p=player: _play(config, w, p)
        )
        for name, player in (("base", base), ("improved", policy))
        for world in ("real", "imagined")
    }
    print("3/3  Video")
    video = run.folder / "real_beside_imagined.mp4"
    run.once("video", lambda: _film(config, policy, video))
    row = run_row(
        replicate=0,
        seed=config.grpo.seed,
        starts=np.arange(config.episodes),
        base=played["real_base"]["success"],
        improved=played["real_improved"]["success"],
        imagined_base=played["imagined_base"]["success"],
        imagined_improved=played["imagined_improved"]["success"],
    )
    seconds = {
        name: json.loads(path.read_text())["seconds"] for name, path in finished(run.folder).items()
    }
    content = result(
        [row],
        controls={},
        real_episodes={"test": 2 * config.episodes},
        wall_seconds=seconds,
        origin=provenance([config.grpo.seed]),
    )
    write_result(run.folder / "results.json", content)
    print(table(content))
    print(
        f"Real episodes used here: 0 to improve, {2 * config.episodes} to test. Behind the bundled "
        "weights: see docs/results.md. "
        f"Wall time {sum(seconds.values()) / 60:.1f} minutes.\nRun folder {run.folder}, "
        f"video {video}"
    )


def check(config: QuickstartConfig) -> None:
    """Raise ValueError for an unknown task, and for options that do not fit.

    ImportError where the real test would find no robosuite.
    """
    check_count("episodes", config.episodes, len(load_starts(get_task(config.task).name, "test")))
    check_workers(config.workers)
    grpo.check(config.grpo, config.imagined_envs, config.grpo.eval_episodes)
    if not (config.out / "results.json").exists():
        check_robosuite()


def _improve(config: QuickstartConfig, policy: TokenVLA, run: Run) -> dict[str, Any]:
    begin = with_moments(load_starts(config.task, "train"), load_moments(config.task))
    env = _env(config, "imagined", config.imagined_envs, "train", starts=begin, unanimous=True)
    validation = _env(config, "imagined", config.grpo.eval_episodes, "validation")
    grpo.train(config.grpo, policy, env, run, validation)
    policy.save_pretrained(run.folder / "policy_improved", dtype=torch.float16)
    return {}


def _play(config: QuickstartConfig, world: str, policy: TokenVLA) -> dict[str, Any]:
    with closing(_env(config, world, min(64, config.episodes), "test")) as env:
        played = evaluate(policy, env, range(config.episodes), dtype=config.grpo.dtype)
    return {"success": played.success.tolist()}


def _film(config: QuickstartConfig, policy: TokenVLA, path: Path, count: int = 4) -> dict[str, Any]:
    """Let both worlds play the actions that the policy chooses in the imagined one."""
    frames: dict[str, Any] = {}
    actions: list[np.ndarray] = []
    for world in ("imagined", "real"):
        env = _env(config, world, count, "test", return_frames=True)
        with closing(env):
            obs, info = env.reset(seed=0, options={"start": np.arange(count)})
            shown, step = [np.asarray(obs["image"])[:, None]], 0
            while np.asarray(info["active"]).any() and step * policy.chunk < env.unwrapped.horizon:
                if world == "imagined":
                    with torch.inference_mode(), autocast(policy, config.grpo.dtype):
                        decision = policy.act(obs, env.unwrapped.instructions, greedy=True)
                    actions.append(decision.action.cpu().numpy())
                if step == len(actions):
                    break
                obs, *_, info = env.step(actions[step])
                shown.append(np.asarray(info["frames"]))
                step += 1
            frames[world] = np.concatenate(shown, axis=1), np.asarray(info["success"])
    pairs = [
        side_by_side(
            frames["real"][0][i],
            frames["imagined"][0][i],
            success=(bool(frames["real"][1][i]), bool(frames["imagined"][1][i])),
        )
        for i in range(count)
    ]
    longest = max(len(pair) for pair in pairs)
    write_video(path, tile(np.stack([hold(pair, longest) for pair in pairs]), columns=2))
    return {}


def _env(config: QuickstartConfig, world: str, n: int, split: str, **options: Any) -> Any:
    options |= {"dtype": "bfloat16"} if world == "imagined" else {"workers": config.workers}
    return make_env(config.task, world, n, split=split, **options)

"""What was gained: base, improved and control policies on the same real test starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.base import Act
from policies.token import TokenVLA
from trainers import bc
from trainers.rollout import evaluate
from trainers.settings import STARTS, WMPOConfig
from trainers.wmpo import STAGES, device, episodes, imagined_env, keep, real_env
from wm_gym.evaluation.paired import provenance, result, run_row, table, write_result
from wm_gym.evaluation.statistics import rate
from wm_gym.runs import Run, finished

CONTROLS = ("clone_longer", "clone_successes", "blank_picture")


def controls(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Clone on from the base policy for as long as GRPO took, without and with its successes."""
    spent = _read(run.folder / "done" / f"{improved(config)[0]}.json")["practice_seconds"]
    speed = _read(run.folder / "done" / "clone.json")["steps_per_second"]
    steps = int(spent * speed)
    sources = {
        "clone_longer": ["demonstrations"],
        "clone_successes": ["demonstrations", "rollouts"],
    }
    for name, recorded in sources.items():
        policy = TokenVLA.from_pretrained(run.folder / "policy_base", device=device())
        chunks = bc.chunks_from(
            episodes(run, *recorded), config.facts.instruction, policy.chunk, after_success=4
        )
        settings = replace(config.clone, steps=steps, seed=config.seed + 1)
        bc.train(settings, policy, chunks, run.stage(name, settings))
        keep(policy, run.folder / f"policy_{name}")
    return {"steps": steps, "grpo_seconds": spent}


def test(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Play every policy greedily from every test start, in the real and in the imagined world."""
    names = ["policy_base", *improved(config), *(f"policy_{name}" for name in CONTROLS)]
    report = {}
    for world in ("real", "imagined"):
        for name in names:
            if world == "imagined" and name.removeprefix("policy_") in CONTROLS:
                continue
            played = run.once(
                f"test_{world}_{name}", lambda w=world, n=name: _play(config, run, w, n)
            )
            report[f"{world}/{name}"] = f"{rate(played['success'])}"
            print(f"{world:>8} {name:<22} {rate(played['success'])}", flush=True)
    return report


def _play(config: WMPOConfig, run: Run, world: str, name: str) -> dict[str, Any]:
    if name == "policy_blank_picture":
        policy: Any = Blind(TokenVLA.from_pretrained(run.folder / improved(config)[0]))
    else:
        policy = TokenVLA.from_pretrained(run.folder / name)
    make = real_env if world == "real" else imagined_env
    with closing(make(config, run, "test", 64)) as env:
        played = evaluate(policy, env, range(STARTS["test"]), dtype=config.grpo.dtype)
    return {"success": played.success.tolist(), "length": played.length.tolist()}


def improved(config: WMPOConfig) -> list[str]:
    """Names of the improved policies in a run folder."""
    return [f"policy_improved_{seed}" for seed in config.grpo_seeds]


class Blind:
    """A policy that is shown grey pictures: what is left is what it knows by heart."""

    def __init__(self, policy: TokenVLA) -> None:
        """Blindfold `policy`."""
        self.policy, self.chunk = policy, policy.chunk
        self.event_steps = policy.event_steps

    def act(self, obs: dict, instructions: Sequence[str], **options: Any) -> Act:
        """Act as the policy would on a grey picture."""
        grey = torch.full_like(torch.as_tensor(obs["image"]), 127)
        return self.policy.act({"image": grey}, instructions, **options)

    def parameters(self) -> Any:
        """Weights of the policy inside."""
        return self.policy.parameters()


def publish(runs: Sequence[Path], path: Path) -> str:
    """Pool the finished runs at these folders into one results file, and return its table.

    A stage's wall time is the longest that one of them took. Raises FileNotFoundError, naming what
    is missing, where a run was not played to its end, and ValueError for the same replicate twice
    and for runs that used up different numbers of real episodes.
    """
    rows, seconds, control, counted = [], {}, {}, {}
    seeds = []
    for folder in runs:
        settings = _read(folder / "config.json")
        done = {name: _read(path) for name, path in finished(folder).items()}
        if "test" not in done:
            raise FileNotFoundError(
                f"{folder} has no finished test; run `wm-gym wmpo --out {folder}` to its end."
            )
        if settings["seed"] in seeds:
            raise ValueError(
                f"{folder} is replicate {settings['seed']} once more; pool runs of other --seeds."
            )
        used = _real_episodes(done)
        counted = counted or used
        if used != counted:
            raise ValueError(
                f"{folder} used {used} real episodes, {runs[0]} {counted}; pool runs of one budget."
            )
        success = {key: np.array(v["success"]) for key, v in done.items() if "success" in v}
        seeds.append(settings["seed"])
        for seed in settings["grpo_seeds"]:
            name = f"policy_improved_{seed}"
            rows.append(
                run_row(
                    replicate=settings["seed"],
                    seed=seed,
                    starts=np.arange(len(success["test_real_policy_base"])),
                    base=success["test_real_policy_base"],
                    improved=success[f"test_real_{name}"],
                    imagined_base=success["test_imagined_policy_base"],
                    imagined_improved=success[f"test_imagined_{name}"],
                )
            )
        for name in CONTROLS:
            control.setdefault(name, []).append(success[f"test_real_policy_{name}"])
        for name in filter(done.get, (*STAGES, "controls", "test")):
            seconds[name] = max(seconds.get(name, 0.0), _seconds(done[name]))
    content = result(
        rows,
        controls=control,
        real_episodes=counted,
        wall_seconds=seconds,
        origin=provenance(seeds),
    )
    write_result(path, content)
    return table(content)


def _real_episodes(done: Mapping[str, Any]) -> dict[str, int]:
    """How many real episodes of every kind the finished stages of a run report."""
    return {
        "demonstrations": done["demonstrations"]["demonstrations"],
        "play": done["demonstrations"]["play"],
        **{k: n for k, n in done["demonstrations"].items() if k == "unfilmed"},
        "rollouts": done["rollouts"]["rollouts"],
        "validation": done["clone"]["validation_episodes"],
    }


def _seconds(report: dict[str, Any]) -> float:
    """Seconds of a stage, with the practice of attempts that were interrupted."""
    parts = [part for part in report.values() if isinstance(part, dict)]
    return max(report["seconds"], sum(part.get("practice_seconds", 0) for part in parts))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

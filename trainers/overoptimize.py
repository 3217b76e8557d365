"""Practise in imagination for far longer than usual: when does imagined success part from the real?

wm-gym overoptimize --run runs/lift
wm-gym overoptimize --run runs/lift --threshold 0.95 --out runs/strict   # a defence, measured
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.base import Policy
from policies.token import TokenVLA
from trainers import grpo
from trainers.agree import AgreeConfig, cells, compared, play_both
from trainers.audit import Models, first_starts
from trainers.replay import DTYPE, ROWS, begin
from trainers.rollout import autocast, instructions_of, make_env
from trainers.settings import WMPOConfig
from trainers.wmpo import device, practise
from wm_gym.checks import check_count, check_limit, check_share, check_unset, check_workers
from wm_gym.evaluation.audit import mistakes
from wm_gym.evaluation.figures import plot_optimisation
from wm_gym.evaluation.paired import aligned, provenance, write_result
from wm_gym.evaluation.statistics import Rate, paired_difference, rate_difference
from wm_gym.hub import fingerprint
from wm_gym.real.simulation import check_robosuite
from wm_gym.runs import Run
from wm_gym.starts import StartPool
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.world_model.loading import load_world_model


@dataclass(frozen=True, slots=True)
class OveroptimizeConfig:
    """For how long a policy practises, and what it is paid for."""

    run: Path
    """Run folder of `wm-gym wmpo`, with the stages up to train-success done."""
    iterations: int = 240
    """Iterations of GRPO; a run of `wm-gym wmpo` has 60."""
    every: int = 20
    """Iterations between policies that are kept and played in both worlds."""
    threshold: float | None = None
    """Practise under a classifier that needs this probability; its own by default."""
    hold: int | None = None
    """Practise under one that needs a success to last so many steps; its own by default."""
    max_uncertainty: float | None = None
    """Practise in a world that truncates episodes of which it is less certain; never by default."""
    unanimous: bool | None = None
    """Practise where every member of the world model must see a success; as the run by default."""
    episodes: int = 128
    """Episodes of each policy in each world, from the first validation starts."""
    seed: int = 0
    """Of GRPO's play, and of the noise in the imagined world."""
    workers: int | None = None
    """Simulator processes; one a core by default."""
    grpo: grpo.GRPOConfig = field(default_factory=grpo.GRPOConfig)
    out: Path = Path("runs/overoptimize")
    """Folder for overoptimize.json, overoptimize.png, the policies and what an interrupted command
    goes on from."""


def overoptimize(config: OveroptimizeConfig) -> None:
    """Practise far too long, and play what comes of it in both worlds.

    Success is judged by the run's own classifier throughout, whatever the practice was paid for.
    """
    check(config)
    given = json.loads((config.run / "config.json").read_text())
    names = ("task", "seed", "imagined_envs", "moments")
    as_run = given.get("unanimous", False)  # runs were made before there was the option
    unanimous = as_run if config.unanimous is None else config.unanimous
    told = {name: given[name] for name in names}
    wmpo = WMPOConfig(out=config.run, unanimous=unanimous, **told)
    settings = replace(
        config.grpo, iterations=config.iterations, eval_every=config.every, seed=config.seed
    )
    grpo.check(settings, wmpo.imagined_envs, settings.eval_episodes)
    model = load_world_model(config.run / "world_model", device=device())
    classifier = SuccessClassifier.from_pretrained(config.run / "success", device=device())
    weights = {"world_model": fingerprint(model), "success": fingerprint(classifier)}
    run = Run(config.out, {**asdict(config), "weights": weights}, resume=True)
    payer = strict(classifier, config.threshold, config.hold)
    world = {"success": payer, "max_uncertainty": config.max_uncertainty}
    base = Run(config.run, given, resume=True)
    stage = run.stage("grpo", {**asdict(settings), "unanimous": unanimous})
    practised = run.once("grpo", lambda: practise(wmpo, base, settings, stage, **world)[1])
    agree = AgreeConfig(
        task=wmpo.task,
        starts=config.run,
        episodes=config.episodes,
        seed=config.seed,
        workers=config.workers,
    )
    pool = first_starts(agree)
    models = Models(model, classifier, {}, weights)
    kept = {0: config.run / "policy_base"}
    kept |= {int(path.name): path for path in sorted(stage.folder.glob("policies/[0-9]*"))}
    rows = []
    for iteration, path in kept.items():
        policy = TokenVLA.from_pretrained(path, device=device())
        played = run.once(
            f"played_{iteration:05d}",
            lambda policy=policy: {
                **play_both(agree, policy, 0.0, models, pool),
                "replayed": repeat(agree, policy, models, pool),
            },
        )
        outcomes = {world: np.array(played["replayed"][world]) for world in ("imagined", "real")}
        row = {"iteration": iteration, **compared(played["real"], played["imagined"])}
        rows.append({**row, "replayed": mistakes(**outcomes)})
        print(iteration, *cells(rows[-1]), *wrong(rows[-1]), flush=True)
    content = {
        **provenance([config.seed]),
        "task": wmpo.task,
        "run": str(config.run),
        "weights": weights,
        "paid": {
            **{name: getattr(payer.config, name) for name in ("threshold", "hold_k", "hold_n")},
            "max_uncertainty": config.max_uncertainty,
            "unanimous": unanimous,
        },
        "grpo": {**asdict(settings), "seconds": practised["seconds"]},
        "rows": rows,
        "parts_at": parts_at(rows),
        "misleads_at": misleads_at(rows),
    }
    write_result(run.folder / "overoptimize.json", content)
    plot_optimisation(run.folder / "overoptimize.png", content)
    print(table(content))
    print(f"Written to {run.folder}: overoptimize.json, overoptimize.png")


def check(config: OveroptimizeConfig) -> None:
    """Raise ValueError where an option is wrong, or another one decides it.

    ImportError where the real world would find no robosuite.
    """
    for name in ("iterations", "every", "episodes"):
        check_count(name, getattr(config, name))
    check_workers(config.workers)
    if not (config.run / "config.json").is_file():
        raise FileNotFoundError(f"{config.run} is no run folder of `wm-gym wmpo`; name one.")
    if config.hold is not None:
        check_count("hold", config.hold)
    if config.threshold is not None:
        check_share("threshold", config.threshold)
    check_limit("max_uncertainty", config.max_uncertainty)
    decided = {"iterations": "iterations", "eval_every": "every", "seed": "seed"}
    for name, instead in decided.items():
        given, usual = getattr(config.grpo, name), getattr(grpo.GRPOConfig(), name)
        check_unset(f"grpo.{name}", given, usual, instead)
    if not (config.out / "overoptimize.json").exists():
        check_robosuite()


def repeat(
    config: AgreeConfig, policy: Policy, models: Models, pool: StartPool
) -> dict[str, list[bool]]:
    """Play greedily in the imagined world and repeat the actions in the simulator: who succeeds.

    As `wm-gym audit` does, but for the pictures: world -> success, of the same episodes.
    """
    n, found = min(ROWS, config.episodes), {"imagined": [], "real": []}
    options = {"starts": pool, "split": pool.split, "chunk": policy.chunk}
    options |= {"ignore_terminations": True}
    world = {"world_model": models.world_model, "success": models.success, "dtype": DTYPE}
    with (
        closing(make_env(config.task, "imagined", n, **world, **options)) as imagined,
        closing(make_env(config.task, "real", n, workers=config.workers, **options)) as real,
    ):
        told = instructions_of(imagined)
        for first in range(0, config.episodes, n):
            wave = np.arange(first, min(first + n, config.episodes))
            obs = begin(imagined, wave, config.seed)
            begin(real, wave, config.seed)
            for _ in range(-(-imagined.unwrapped.horizon // policy.chunk)):
                with torch.inference_mode(), autocast(policy, DTYPE):
                    action = policy.act(obs, told, greedy=True).action.cpu().numpy()
                obs, *_, thought = imagined.step(action)
                *_, happened = real.step(action)
            for name, info in (("imagined", thought), ("real", happened)):
                found[name] += info["success"][: len(wave)].tolist()
    return found


def strict(
    classifier: SuccessClassifier, threshold: float | None, hold: int | None
) -> SuccessClassifier:
    """The same classifier with another rule: at least `threshold` for `hold` windows in a row."""
    rule = {} if threshold is None else {"threshold": threshold}
    rule |= {} if hold is None else {"hold_k": hold, "hold_n": hold}
    other = copy.deepcopy(classifier)
    other.config = replace(classifier.config, **rule)
    return other


def parts_at(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The first iteration after which imagination is more optimistic than for the base policy.

    That is: where imagined less real success has grown since the first row, start by start, with
    `certainty`. None where it never has.
    """
    gaps = [np.subtract(r["imagined_success"], r["real_success"], dtype=np.float64) for r in rows]
    later, level = zip(rows[1:], gaps[1:], strict=True), certainty(rows)
    grown = (
        r["iteration"] for r, gap in later if paired_difference(gaps[0], gap, level=level).low > 0
    )
    return next(grown, None)


def misleads_at(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The first iteration after which failures are imagined as successes more often than at first.

    That is: where that share has grown since the first row, with `certainty`. None where it never
    has, or where the base policy never fails.
    """
    told = [(r["iteration"], r["replayed"]["hallucinated_success_rate"]) for r in rows]
    shares = [(at, Rate(**share)) for at, share in told if share]
    if told[0][1] is None:
        return None
    begun, level = shares[0][1], certainty(rows)
    return next((at for at, s in shares if rate_difference(begun, s, level=level).low > 0), None)


def certainty(rows: Sequence[Mapping[str, Any]]) -> float:
    """Level of every row's interval at which 95 % of practices that change nothing show nothing.

    Each row after the first may err by itself: Bonferroni's bound.
    """
    return 1 - 0.05 / max(1, len(rows) - 1)


def wrong(row: Mapping[str, Any]) -> tuple[str, ...]:
    """How often outcomes of the same actions differ, as text: hallucinated and missed."""
    shares = (row["replayed"][f"{kind}_success_rate"] for kind in ("hallucinated", "missed"))
    return tuple("-" if share is None else str(Rate(**share)) for share in shares)


def table(content: Mapping[str, Any]) -> str:
    """A report as plain text."""
    titles = ("iteration", "imagined", "real", "imagined - real", "hallucinated", "missed")
    rows = [(str(row["iteration"]), *cells(row), *wrong(row)) for row in content["rows"]]
    rates, outcomes = content["parts_at"], content["misleads_at"]
    return "\n".join(
        [
            *aligned([titles, *rows]),
            "That imagined success becomes optimistic is not shown."
            if rates is None
            else f"Imagined success has become optimistic at iteration {rates}.",
            "That failures are imagined as successes more often is not shown."
            if outcomes is None
            else f"Failures are imagined as successes more often at iteration {outcomes}.",
        ]
    )

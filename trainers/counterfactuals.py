"""Perturb successes on purpose, play them in both worlds, and ask the imagination which ones fail.

wm-gym counterfactuals                                    # the bundled weights
wm-gym counterfactuals --world-model runs/mine/world_model --success runs/mine/success
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from trainers.audit import first_starts
from trainers.replay import DTYPE, ROWS, first_step, play
from trainers.rollout import make_env
from trainers.wmpo import device
from wm_gym.checks import check_count, check_pair, check_workers
from wm_gym.data.collection import record_expert
from wm_gym.data.reading import load
from wm_gym.errors import UserError
from wm_gym.evaluation.audit import write_pairs
from wm_gym.evaluation.counterfactuals import (
    FAMILIES,
    NONE,
    SEVERITIES,
    Counterfactual,
    perturb,
    report,
    table,
)
from wm_gym.evaluation.paired import provenance, write_result
from wm_gym.hub import fingerprint
from wm_gym.real.expert import DEMONSTRATION
from wm_gym.real.pool import SimulationPool
from wm_gym.runs import Run
from wm_gym.starts import StartPool
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.tasks import get_task
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel

CHUNK = 8  # actions of a decision


@dataclass(frozen=True, slots=True)
class CounterfactualsConfig:
    """Which imagined world is judged, and on successes from which starts."""

    world_model: str | None = None
    """A folder, a bundled name or a Hub id; what is bundled for the task by default."""
    success: str | None = None
    """The success classifier: a folder, a bundled name or a Hub id."""
    starts: Path | None = None
    """Folder of the starts."""
    task: str = "Lift"
    split: Literal["train", "validation", "test"] = "validation"
    """Which starts are played."""
    episodes: int = 24
    """The scripted expert plays from this many first starts of the split; where it succeeds, its
    actions are perturbed."""
    seed: int = 0
    """Of the expert, of the perturbations, and of the noise in the imagined world."""
    workers: int | None = None
    """Simulator processes; one a core by default."""
    out: Path = Path("runs/counterfactuals")
    """Folder for counterfactuals.csv, counterfactuals.json, the expert's episodes and what an
    interrupted run goes on from."""


def counterfactuals(config: CounterfactualsConfig) -> None:
    """Perturb successful episodes and replay them in both worlds: are the failures imagined?"""
    check_count("episodes", config.episodes)
    check_workers(config.workers)
    check_pair(config.world_model, config.success)
    pool = first_starts(config)
    bundle = get_task(config.task).name.lower()
    models = {name: getattr(config, name) or bundle for name in ("world_model", "success")}
    config = replace(config, **models)
    model = load_world_model(config.world_model, device=device())
    classifier = SuccessClassifier.from_pretrained(config.success, device=device())
    weights = {"world_model": fingerprint(model), "success": fingerprint(classifier)}
    run = Run(config.out, {**asdict(config), "weights": weights}, resume=True)
    successes = demonstrate(config, pool, run)
    rows: list[Counterfactual] = []
    played = {}
    for family in (NONE, *FAMILIES):
        done = run.once(
            f"rows_{family}",
            lambda family=family: {
                **provenance([config.seed]),
                "rows": play_family(config, family, successes, model, classifier, pool),
            },
        )
        rows += [Counterfactual(*row) for row in done["rows"]]
        played[family] = {key: done[key] for key in ("commit", "date", "seconds")}
    content = {
        **provenance([config.seed]),
        **{key: getattr(config, key) for key in ("task", "split", "world_model", "success")},
        "weights": weights,
        "starts": {"played": config.episodes, "succeeded": len(successes)},
        "played": played,
        **report(rows),
    }
    write_pairs(run.folder / "counterfactuals.csv", rows, Counterfactual._fields)
    write_result(run.folder / "counterfactuals.json", content)
    print(f"The expert succeeded from {len(successes)} of {config.episodes} starts.")
    print(table(content))
    print(f"Written to {run.folder}: counterfactuals.csv, counterfactuals.json")


def demonstrate(config: CounterfactualsConfig, pool: StartPool, run: Run) -> dict[int, np.ndarray]:
    """Let the scripted expert play to the horizon; return what succeeded: start -> (t, 7) float32.

    Raises UserError where it never does.
    """
    task, path = get_task(config.task), run.folder / "demonstrations.hdf5"

    def record() -> None:
        expert = replace(DEMONSTRATION, length=task.horizon)
        indices, facts = range(config.episodes), {"source": "demonstrations", "seed": config.seed}
        with SimulationPool(task, config.workers) as simulations:
            record_expert(path, task, pool, indices, expert, pool=simulations, **facts)

    run.once("demonstrations", record)
    found = {episode.start: episode.actions for episode in load([path]) if episode.succeeded}
    if not found:
        raise UserError(
            f"The expert did not succeed from any of {config.episodes} starts; give it more "
            "--episodes."
        )
    return found


def play_family(
    config: CounterfactualsConfig,
    family: str,
    successes: Mapping[int, np.ndarray],
    model: WorldModel,
    classifier: SuccessClassifier,
    pool: StartPool,
) -> list[Counterfactual]:
    """Play every success in both worlds, open loop, as the family perturbs it at each severity."""
    sequences = perturbed(family, successes, config.seed)
    n, horizon = min(ROWS, len(sequences)), get_task(config.task).horizon
    firsts = range(0, len(sequences), n)
    options = {"starts": pool, "split": pool.split, "chunk": CHUNK, "horizon": horizon}
    options |= {"return_frames": True, "ignore_terminations": True}
    models = {"world_model": model, "success": classifier, "dtype": DTYPE}
    decisions = 2 * len(firsts) * -(-horizon // CHUNK)
    rows = []
    with (
        closing(make_env(config.task, "imagined", n, **models, **options)) as imagined_env,
        closing(make_env(config.task, "real", n, workers=config.workers, **options)) as real_env,
        tqdm(total=decisions, desc=family, unit="decision") as bar,
    ):
        for first in firsts:
            severities, starts, actions = zip(*sequences[first : first + n], strict=True)
            given = np.resize(np.stack(actions), (n, horizon, 7))  # frozen rows repeat others

            def decide(decision: int, _: Any, given: np.ndarray = given) -> np.ndarray:
                return given[:, CHUNK * decision : CHUNK * (decision + 1)]

            imagined, real = (
                play(env, np.array(starts), config.seed, decide, bar)
                for env in (imagined_env, real_env)
            )
            rows += [
                Counterfactual(
                    family,
                    severities[i],
                    start,
                    first_step(real.success[i]),
                    first_step(imagined.success[i]),
                    round(float(imagined.probability[i]), 4),
                )
                for i, start in enumerate(starts)
            ]
    return rows


def perturbed(
    family: str, successes: Mapping[int, np.ndarray], seed: int
) -> Sequence[tuple[float, int, np.ndarray]]:
    """Every success at each severity of a family: (severity, start, actions (t, 7) float32)."""
    if family == NONE:
        return [(0.0, start, actions) for start, actions in successes.items()]
    return [
        (severity, start, perturb(actions, family, severity, (seed, start)))
        for severity in SEVERITIES
        for start, actions in successes.items()
    ]

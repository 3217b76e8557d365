"""Replay imagined episodes in robosuite, action by action, and count where the outcomes differ.

wm-gym audit                                           # the bundled weights
wm-gym audit --run runs/lift --out runs/lift_audit     # those of a run folder
wm-gym audit --policies runs/mine/policy_base ...      # other policies
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from policies.token import TokenVLA
from trainers.fresh import play_for_probe
from trainers.replay import DTYPE, ROWS, Episodes, first_step, judge, play
from trainers.rollout import autocast, make_env
from trainers.wmpo import device
from wm_gym.checks import check_count, check_pair, check_workers
from wm_gym.evaluation.audit import Pair, examples, kind, report, table, video_name, write_pairs
from wm_gym.evaluation.page import write_page
from wm_gym.evaluation.paired import provenance, write_result
from wm_gym.evaluation.probe import (
    PositionProbe,
    ProbeConfig,
    positions,
    read,
    steady,
    train_probe,
)
from wm_gym.evaluation.taxonomy import Track, failure, red
from wm_gym.evaluation.video import side_by_side, write_video
from wm_gym.files import replacing
from wm_gym.hub import bundled, fingerprint
from wm_gym.runs import Run
from wm_gym.starts import StartPool, load_starts
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.tasks import get_task
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel

TRACKS = "tracks_{}.npy"  # by the policy's number, see `locate`
PROBE = "probe.pt"  # that read them, see `learnt_probe`


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Which policies play in which imagined world, and from which starts."""

    policies: tuple[str, ...] = ()
    """Folders, bundled names or Hub ids; none means all that are bundled, or the base policy and
    the improved ones of `run`."""
    run: Path | None = None
    """Run folder of `wm-gym wmpo` for all that is not named here, instead of what is bundled."""
    world_model: str | None = None
    """A folder, a bundled name or a Hub id."""
    success: str | None = None
    """The success classifier: a folder, a bundled name or a Hub id."""
    starts: Path | None = None
    """Folder of the starts."""
    task: str = "Lift"
    split: Literal["train", "validation", "test"] = "validation"
    """Which starts are played."""
    episodes: int = 100
    """Imagined episodes of each policy, from the first starts of the split."""
    seed: int = 0
    """Of the noise in the imagined world."""
    workers: int | None = None
    """Simulator processes; one a core by default."""
    out: Path = Path("runs/audit")
    """Folder for audit.csv, audit.json, report.html, videos, tracks, and what an interrupted audit
    goes on from."""


class Models(NamedTuple):
    """All that plays, and how to tell it from others."""

    world_model: WorldModel
    success: SuccessClassifier
    policies: dict[str, TokenVLA]
    """By their `labels`."""
    weights: dict[str, Any]
    """The `fingerprint` of each."""


def audit(config: AuditConfig) -> None:
    """Replay imagined episodes in robosuite: how many successes are hallucinated, or missed."""
    check_count("episodes", config.episodes)
    check_workers(config.workers)
    config = resolve(config)
    pool = first_starts(config)
    models = load_models(config)
    run = Run(config.out, {**asdict(config), "weights": models.weights}, resume=True)
    pairs: list[Pair] = []
    played, tracks = {}, {}
    for number, name in enumerate(models.policies):
        tracked = run.folder / TRACKS.format(number)
        done = run.once(
            f"pairs_{number}",
            lambda name=name, tracked=tracked: {
                **provenance([config.seed]),
                "pairs": replay_pairs(config, name, models, pool, tracked),
            },
        )
        pairs += [Pair(*row) for row in done["pairs"]]
        played[name] = {key: done[key] for key in ("commit", "date", "seconds")}
        if tracked.exists():
            tracks[name] = np.load(tracked)
    content = {
        **provenance([config.seed]),
        **{key: getattr(config, key) for key in ("task", "split", "world_model", "success")},
        "weights": models.weights,
        "played": played,
        **report(pairs, tracks),
    }
    write_pairs(run.folder / "audit.csv", pairs)
    write_result(run.folder / "audit.json", content)
    print(table(content))
    write_page(run.folder / "report.html", run.folder)
    print(f"Written to {run.folder}: audit.csv, audit.json, report.html, videos")


def first_starts(config: AuditConfig) -> StartPool:
    """Load the starts to play from; raises ValueError where there are too few."""
    pool = load_starts(config.task, config.split, config.starts)
    if config.episodes > len(pool):
        raise ValueError(
            f"There are {len(pool)} {config.split} starts for {config.episodes} episodes; ask for "
            "fewer, or for another --split."
        )
    return pool


def load_models(config: AuditConfig) -> Models:
    """Load all that a resolved `config` names; raises ValueError for a policy named twice."""
    names = labels(config.policies)
    model = load_world_model(config.world_model, device=device())
    classifier = SuccessClassifier.from_pretrained(config.success, device=device())
    players = [TokenVLA.from_pretrained(policy, device=device()) for policy in config.policies]
    policies = dict(zip(names, players, strict=True))
    weights = {
        "world_model": fingerprint(model),
        "success": fingerprint(classifier),
        "policies": {name: fingerprint(policy) for name, policy in policies.items()},
    }
    return Models(model, classifier, policies, weights)


def resolve(config: AuditConfig) -> AuditConfig:
    """Name what was left open: of the run folder where there is one, or else what is bundled.

    Raises FileNotFoundError where there is no policy to play, and ValueError for a world model
    without its classifier.
    """
    check_pair(config.world_model, config.success)
    task, folder = get_task(config.task).name.lower(), config.run
    if folder is None:
        found = [name for name in bundled() if name.startswith(f"{task}/policy_")]
        models = {"world_model": task, "success": task}
    else:
        paths = [*folder.glob("policy_base"), *sorted(folder.glob("policy_improved_*"))]
        found = [str(path) for path in paths]
        models = {name: str(folder / name) for name in ("world_model", "success")}
    policies = config.policies or tuple(found)
    if not policies:
        raise FileNotFoundError(
            f"There is no policy_base and no policy_improved_* in {folder or 'the bundle'}; name "
            "--policies."
        )
    given = {name: getattr(config, name) or model for name, model in models.items()}
    return replace(config, policies=policies, starts=config.starts or folder, **given)


def labels(policies: Sequence[str]) -> list[str]:
    """Call every policy by the end of its path: as few parts as tell all of them apart.

    Raises ValueError where one is named twice.
    """
    parts = [Path(policy).parts for policy in policies]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    raise ValueError(f"Expected every policy once, got {', '.join(policies)}; drop the repeats.")


def replay_pairs(
    config: AuditConfig, name: str, models: Models, pool: StartPool, tracked: Path
) -> list[Pair]:
    """Let a policy play greedily in the imagined world, and the simulator repeat its actions.

    Films `examples` of them into the folder `videos` of the audit, and writes to the file `tracked`
    where gripper and object were, as from `locate`, if the simulator measures that.
    """
    policy = models.policies[name]
    n, horizon = min(ROWS, config.episodes), get_task(config.task).horizon
    firsts = range(0, config.episodes, n)
    options = {"starts": pool, "split": pool.split, "chunk": policy.chunk, "horizon": horizon}
    options |= {"return_frames": True, "ignore_terminations": True}
    world = {"world_model": models.world_model, "success": models.success, "dtype": DTYPE}
    decisions = 2 * len(firsts) * -(-horizon // policy.chunk)
    pairs, tracks, probe = [], [], None
    with (
        closing(make_env(config.task, "imagined", n, **world, **options)) as imagined_env,
        closing(make_env(config.task, "real", n, workers=config.workers, **options)) as real_env,
        tqdm(total=decisions, desc=name, unit="decision") as bar,
    ):

        def decide(_: int, obs: dict[str, Any]) -> np.ndarray:
            with torch.inference_mode(), autocast(policy, DTYPE):
                told = imagined_env.unwrapped.instructions
                return policy.act(obs, told, greedy=True).action.cpu().numpy()

        for first in firsts:
            starts = np.arange(first, min(first + n, config.episodes))
            imagined = play(imagined_env, starts, config.seed, decide, bar)
            real = play(real_env, starts, config.seed, lambda d, _, a=imagined.actions: a[d], bar)
            judged = judge(models.world_model, models.success, real.frames)
            wave = [
                Pair(
                    name,
                    int(start),
                    first_step(imagined.success[i]),
                    first_step(real.success[i]),
                    judged[i],
                    round(float(imagined.probability[i]), 4),
                )
                for i, start in enumerate(starts)
            ]
            if real.measured and positions(real.measured[0]) is not None:
                probe = probe or learnt_probe(config)
                tracks.append(locate(probe, imagined, real))
                wave = name_failures(wave, imagined.frames, tracks[-1])
            pairs += wave
            for pair in examples(pairs):
                if (i := pair.start - first) < 0:
                    continue  # filmed before
                shown = film(pair, real.frames[i], imagined.frames[i])
                write_video(config.out / "videos" / video_name(pair), shown)
    if tracks:
        with replacing(tracked) as aside, aside.open("wb") as file:
            np.save(file, np.concatenate(tracks, axis=1))
    return pairs


def learnt_probe(config: AuditConfig) -> PositionProbe:
    """The probe that reads all policies' pictures: it learns from play, and is kept in the folder.

    Of replays it would know where things are without looking.
    """
    path, probe = config.out / PROBE, PositionProbe().to(device()).eval()
    if not path.exists():
        episodes = play_for_probe(config.out, config.task, config.seed, config.workers)
        learnt = train_probe(episodes, ProbeConfig(), device())
        with replacing(path) as aside:
            torch.save(learnt.state_dict(), aside)
    probe.load_state_dict(torch.load(path, map_location=device(), weights_only=True))
    return probe


def locate(probe: PositionProbe, imagined: Episodes, real: Episodes) -> np.ndarray:
    """Where gripper and object were in n pairs, metres float32 (3, n, 1 + t, 2, 3).

    By the simulator, and where the probe reads them in the imagined pictures and in the real ones.
    """
    simulated = np.stack([positions(low_dim) for low_dim in real.measured])
    shown = [np.stack([read(probe, film) for film in world.frames]) for world in (imagined, real)]
    return np.stack([simulated, *shown])


def name_failures(pairs: Sequence[Pair], frames: np.ndarray, tracks: np.ndarray) -> list[Pair]:
    """Say of every hallucinated success what went wrong: the pairs, with `failure`.

    `frames`: imagined pictures, uint8 (n, 1 + t, H, W, 3); `tracks` as from `locate`.
    """
    named = []
    for i, pair in enumerate(pairs):
        if kind(pair) == "hallucinated":
            truth, imagined, real = tracks[0, i], *map(steady, tracks[1:, i])
            seen = Track(imagined[:, 0], imagined[:, 1])
            # Hands are compared as both are read; whether the object was lifted is known.
            known = Track(real[:, 0], truth[:, 1])
            wrong = failure(known, seen, red(frames[i]), pair.imagined_step)
            pair = pair._replace(failure=wrong)
        named.append(pair)
    return named


def film(pair: Pair, real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Both videos of a pair, (1 + t, H, W, 3) uint8, side by side under their outcomes."""
    steps = {"real": pair.real_step, "imagined": pair.imagined_step}
    return side_by_side(
        real,
        imagined,
        success=(steps["real"] is not None, steps["imagined"] is not None),
        labels=[f"{w}: {f'success at {s}' if s else 'no success'}" for w, s in steps.items()],
        scale=math.ceil(256 / real.shape[2]),
    )

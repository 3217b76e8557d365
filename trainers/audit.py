"""Replay imagined episodes in robosuite, action by action, and count where the outcomes differ.

wm-gym audit                                           # the bundled weights
wm-gym audit --run runs/lift --out runs/lift_audit     # those of a run folder
wm-gym audit --policies runs/mine/policy_base ...      # other policies
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from policies.token import TokenVLA
from trainers.rollout import autocast, make_env
from trainers.wmpo import device
from wm_gym.checks import check_count
from wm_gym.data.collection import measured
from wm_gym.data.episodes import Episode
from wm_gym.evaluation.audit import Pair, examples, kind, report, table, video_name, write_pairs
from wm_gym.evaluation.page import write_page
from wm_gym.evaluation.paired import provenance, write_result
from wm_gym.evaluation.probe import ProbeConfig, positions, read, train_probe
from wm_gym.evaluation.taxonomy import Track, failure, red
from wm_gym.evaluation.video import side_by_side, write_video
from wm_gym.hub import bundled
from wm_gym.runs import Run
from wm_gym.starts import StartPool, load_starts
from wm_gym.success.calibration import first_success
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.tasks import get_task
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel

ROWS = 64  # episodes side by side; their pictures are kept until they are judged
DTYPE = "bfloat16"  # of the imagined world, as policies practise in it


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
    """Folder for audit.csv, audit.json, report.html, videos, and what an interrupted audit goes on
    from."""


class Episodes(NamedTuple):
    """What n rows of a world played, in d decisions of k actions, t control steps in all."""

    actions: np.ndarray  # (d, rows of the world, k, 7) float32
    frames: np.ndarray  # (n, 1 + t, H, W, 3) uint8
    success: np.ndarray  # (n, t) bool: the world's verdict on each step
    probability: np.ndarray  # (n,) float32: the largest reported after a decision
    low_dim: list[dict[str, np.ndarray]]  # n, what the simulator measured; empty where imagined


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
    config = resolve(config)
    pool = first_starts(config)
    model, classifier, players, weights = load_models(config)
    run = Run(config.out, {**asdict(config), "weights": weights}, resume=True)
    pairs: list[Pair] = []
    played = {}
    for number, (name, policy) in enumerate(players.items()):
        done = run.once(
            f"pairs_{number}",
            lambda name=name, policy=policy: {
                **provenance([config.seed]),
                "pairs": replay_pairs(config, name, policy, model, classifier, pool),
            },
        )
        pairs += [Pair(*row) for row in done["pairs"]]
        played[name] = {key: done[key] for key in ("commit", "date", "seconds")}
    content = {
        **provenance([config.seed]),
        **{key: getattr(config, key) for key in ("task", "split", "world_model", "success")},
        "weights": weights,
        "played": played,
        **report(pairs),
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

    Raises FileNotFoundError where there is no policy to play.
    """
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


def fingerprint(model: nn.Module) -> str:
    """Tell models apart by config and weights, so that no result is taken for another model's."""
    found = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def replay_pairs(
    config: AuditConfig,
    name: str,
    policy: TokenVLA,
    model: WorldModel,
    classifier: SuccessClassifier,
    pool: StartPool,
) -> list[Pair]:
    """Let a policy play greedily in the imagined world, and the simulator repeat its actions.

    Films `examples` of them into the folder `videos` of the audit.
    """
    n, horizon = min(ROWS, config.episodes), get_task(config.task).horizon
    firsts = range(0, config.episodes, n)
    options = {"starts": pool, "chunk": policy.chunk, "horizon": horizon}
    options |= {"return_frames": True, "ignore_terminations": True}
    models = {"world_model": model, "success": classifier, "dtype": DTYPE}
    decisions = 2 * len(firsts) * -(-horizon // policy.chunk)
    pairs, hallucinated, replays = [], {}, []
    with (
        closing(make_env(config.task, "imagined", n, **models, **options)) as imagined_env,
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
            judged = judge(model, classifier, real.frames)
            pairs += [
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
            replays += [as_episode(imagined, real, i) for i in range(len(starts))]
            hallucinated |= {
                pair.start: imagined.frames[pair.start - first]
                for pair in pairs[first:]
                if kind(pair) == "hallucinated"
            }
            for pair in examples(pairs):
                if (i := pair.start - first) < 0:
                    continue  # filmed before
                shown = film(pair, real.frames[i], imagined.frames[i])
                write_video(config.out / "videos" / video_name(pair), shown)
    return name_failures(pairs, hallucinated, replays)


def as_episode(imagined: Episodes, real: Episodes, row: int) -> Episode:
    """The replay of a row, as if it had been recorded."""
    t = real.success.shape[1]
    actions = imagined.actions[:, row].reshape(-1, 7)[:t].astype(np.float32)
    return Episode(real.frames[row], actions, real.success[row], low_dim=real.low_dim[row])


def name_failures(
    pairs: Sequence[Pair], hallucinated: Mapping[int, np.ndarray], replays: Sequence[Episode]
) -> list[Pair]:
    """Say of every hallucinated success what went wrong: the pairs, with `failure`.

    `hallucinated`: the imagined pictures of these, uint8 (1 + t, H, W, 3), by their start;
    `replays`: the real episodes of all pairs. A probe that learns from them reads where gripper and
    object are in what was imagined. Nothing is named where the simulator measured neither.
    """
    if not hallucinated or positions(replays[0]) is None:
        return list(pairs)
    probe = train_probe(replays, ProbeConfig(), device())
    named = []
    for pair, replay in zip(pairs, replays, strict=True):
        if (frames := hallucinated.get(pair.start)) is not None:
            tracks = (Track(*at.swapaxes(0, 1)) for at in (positions(replay), read(probe, frames)))
            pair = pair._replace(failure=failure(*tracks, red(frames), pair.imagined_step))
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


def play(
    env: gym.vector.VectorEnv,
    starts: np.ndarray,
    seed: int,
    decide: Callable[[int, dict[str, Any]], np.ndarray],
    bar: tqdm,
) -> Episodes:
    """Play an episode from each of `starts` (n,) to the horizon; rows left over stay frozen.

    `decide(d, obs)` gives the actions (rows, k, 7) of decision d. The noise of an episode depends
    on `seed` and its start alone.
    """
    world, begun = env.unwrapped, np.resize(starts, env.num_envs)
    options = {"start": begun, "reset_mask": np.arange(len(begun)) < len(starts)}
    obs, _ = env.reset(seed=(seed + begun).tolist(), options=options)
    actions, frames, success, probability = [], [obs["image"][:, None]], [], []
    notes = []
    for decision in range(-(-world.horizon // world.chunk)):
        actions.append(decide(decision, obs))
        obs, *_, info = env.step(actions[-1])
        frames.append(info["frames"])
        success.append(info["frames_success"])
        probability.append(info["success_probability"])
        notes.append(getattr(world, "playbacks", None))
        bar.update()
    n, t = len(starts), world.horizon
    simulated = notes[0] is not None
    return Episodes(
        np.stack(actions),
        np.concatenate(frames, axis=1)[:n, : t + 1],
        np.concatenate(success, axis=1)[:n, :t],
        np.max(probability, axis=0)[:n],
        [measured([note[row] for note in notes])[1] if simulated else {} for row in range(n)],
    )


@torch.inference_mode()
def judge(model: WorldModel, classifier: SuccessClassifier, videos: np.ndarray) -> list[int | None]:
    """When the classifier calls videos, uint8 (n, 1 + t, H, W, 3), a success, in control steps.

    By the imagined world's own rule and precision; None where it never does.
    """
    found = []
    for video in torch.from_numpy(videos):  # one at a time: latents of all would be large
        with torch.autocast(model.device.type, getattr(torch, DTYPE)):
            probability = classifier.watch(model.encode(video[None]))[0]  # (1 + t,)
        after = probability[1:].float().cpu().numpy()  # the first picture is no step's
        rule = classifier.threshold, classifier.hold_k, classifier.hold_n
        step = first_success(after, *rule)
        found.append(None if step is None else step + 1)
    return found


def first_step(success: np.ndarray) -> int | None:
    """The first control step, from 1, of success, bool (t,); None where there is none."""
    return int(success.argmax()) + 1 if success.any() else None

"""Play policies of every quality in both worlds: does imagined success tell the real?

wm-gym agree                                         # the bundled policies, under much noise
wm-gym agree --run runs/lift --out runs/lift_agree   # those of a run folder, checkpoints too
wm-gym agree --policies A B --noise 0 0.2 0.5 1.0    # each of these under each noise
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Generator, Tensor, nn

from policies.base import Act, Policy
from trainers.audit import AuditConfig, Models, first_starts, load_models, resolve
from trainers.replay import DTYPE, ROWS
from trainers.rollout import draw_seeds, evaluate, make_env
from wm_gym.checks import check_count, check_workers
from wm_gym.evaluation.agreement import LEAST, agreement
from wm_gym.evaluation.figures import plot_agreement
from wm_gym.evaluation.paired import aligned, provenance, write_result
from wm_gym.evaluation.statistics import Difference, Rate, paired_difference, rate
from wm_gym.noise import row_noise
from wm_gym.runs import Run
from wm_gym.starts import StartPool

MEANT = 10  # policies, where nobody says under which noise
NOISE = (0.0, 0.8, 0.4, 0.2, 0.6, 0.1, 1.0, 0.3, 0.5, 0.7)  # so many of these as make that many


@dataclass(frozen=True, slots=True)
class AgreeConfig(AuditConfig):
    """Which policies play in both worlds, and from which starts."""

    policies: tuple[str, ...] = ()
    """Folders, bundled names or Hub ids; none means all that are bundled, or the base policy, the
    improved ones and the checkpoints of GRPO of `run`."""
    noise: tuple[float, ...] = ()
    """Every policy plays under each of these: the standard deviation of Gaussian noise on its
    actions, which are in [-1, 1]. None means 0, and more where that makes less than 10 policies."""
    episodes: int = 128
    """Episodes of each policy in each world, from the first starts of the split."""
    seed: int = 0
    """Of the noise in the imagined world and of that on the actions."""
    out: Path = Path("runs/agree")
    """Folder for agreement.json, agreement.png and what an interrupted command goes on from."""


def agree(config: AgreeConfig) -> None:
    """Play policies in both worlds from the same starts: does imagined success tell the real?"""
    check_count("episodes", config.episodes)
    check_workers(config.workers)
    config = settle(config)
    pool = first_starts(config)
    models = load_models(config)
    run = Run(config.out, {**asdict(config), "weights": models.weights}, resume=True)
    rows = list(play_all(config, models, pool, run))
    content = {
        **provenance([config.seed]),
        **{key: getattr(config, key) for key in ("task", "split", "world_model", "success")},
        "weights": models.weights,
        "agreement": agreement(
            [row["real_success"] for row in rows], [row["imagined_success"] for row in rows]
        ),
        "policies": rows,
    }
    write_result(run.folder / "agreement.json", content)
    plot_agreement(run.folder / "agreement.png", content)
    print(table(content))
    print(f"Written to {run.folder}: agreement.json, agreement.png")


def settle(config: AgreeConfig) -> AgreeConfig:
    """Name what was left open: policies, models, and noise.

    Raises FileNotFoundError where there is no policy, ValueError for noise that is none and for
    fewer than three policies, each under each noise counting as one.
    """
    settled = resolve(config)
    policies = settled.policies
    if config.run is not None and not config.policies:
        policies += checkpoints(config.run)
    noise = config.noise or NOISE[: math.ceil(MEANT / len(policies))]
    if len(set(noise)) != len(noise) or not all(0 <= level < math.inf for level in noise):
        raise ValueError(f"Expected different noises of at least 0, got {noise}; mend --noise.")
    if len(policies) * len(noise) < LEAST:
        raise ValueError(
            f"Agreement needs at least {LEAST} policies, got {len(policies)} under {len(noise)} "
            "noise; name more --policies, or more --noise."
        )
    return replace(settled, policies=policies, noise=noise)


def checkpoints(run: Path) -> tuple[str, ...]:
    """Policies that GRPO kept on its way, without a last one that is also a policy_improved_*."""
    found = []
    for stage in sorted(run.glob("training/grpo_*")):
        kept = sorted(stage.glob("policies/[0-9]*"))
        if (run / stage.name.replace("grpo", "policy_improved")).exists():
            last = json.loads((stage / "config.json").read_text())["iterations"]
            kept = [path for path in kept if int(path.name) != last]
        found += map(str, kept)
    return tuple(found)


def play_all(
    config: AgreeConfig, models: Models, pool: StartPool, run: Run
) -> Iterator[dict[str, Any]]:
    """Play every policy under every noise, or read how it played; yields a row of the report."""
    for number, (name, policy) in enumerate(models.policies.items()):
        for level, noise in enumerate(config.noise):
            done = run.once(
                f"policy_{number}_noise_{level}",
                lambda policy=policy, noise=noise: {
                    **provenance([config.seed]),
                    **play_both(config, policy, noise, models, pool),
                },
            )
            row = {
                "policy": name,
                "noise": noise,
                **compared(done["real"], done["imagined"]),
                "played": {key: done[key] for key in ("commit", "date", "seconds")},
            }
            both = f"imagined {Rate(**row['imagined'])}, real {Rate(**row['real'])}"
            print(f"{name}, noise {noise:g}: {both}", flush=True)
            yield row


def compared(real: list[bool], imagined: list[bool]) -> dict[str, Any]:
    """Both success rates of a policy, the optimism (imagined - real, paired), every outcome."""
    return {
        "imagined": rate(imagined)._asdict(),
        "real": rate(real)._asdict(),
        "bias": paired_difference(real, imagined)._asdict(),
        "imagined_success": imagined,
        "real_success": real,
    }


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What is `compared` as text: imagined and real success, and the optimism."""
    rates = (str(Rate(**row[world])) for world in ("imagined", "real"))
    return (*rates, str(Difference(**row["bias"])))


def play_both(
    config: AgreeConfig, policy: Policy, noise: float, models: Models, pool: StartPool
) -> dict[str, list[bool]]:
    """Play greedily, under `noise`, from the first starts of both worlds: world -> success."""
    worlds: dict[str, dict[str, Any]] = {
        "imagined": {"world_model": models.world_model, "success": models.success, "dtype": DTYPE},
        "real": {"workers": config.workers},
    }
    n, found = min(ROWS, config.episodes), {}
    for world, options in worlds.items():
        options |= {"starts": pool, "split": pool.split, "chunk": policy.chunk}
        with closing(make_env(config.task, world, n, **options)) as env:
            player = NoisyPolicy(policy, noise, config.seed, env)
            starts = range(config.episodes)
            played = evaluate(player, env, starts, seed=config.seed, dtype=DTYPE)
        found[world] = played.success.tolist()
    return found


class NoisyPolicy:
    """A policy in one of our worlds, with Gaussian noise added to what it decides.

    The noise depends on `seed`, the start and the step at which a decision is taken, so it is the
    same in both worlds, and for every policy that decides as many steps at once. Actions are
    clipped to [-1, 1] after it.
    """

    def __init__(self, policy: Policy, noise: float, seed: int, env: gym.vector.VectorEnv) -> None:
        """Disturb `policy` in `env`, by a standard deviation of `noise`."""
        self.policy, self.noise, self.env = policy, noise, env
        self.seed = draw_seeds(1, seed, 4)[0]  # apart from those of the imagined world
        self.chunk, self.event_steps = policy.chunk, policy.event_steps

    def act(
        self,
        obs: Mapping[str, Any],
        instructions: Sequence[str],
        *,
        greedy: bool = False,
        generator: Generator | None = None,
    ) -> Act:
        """Decide as the policy does, then disturb the action; `sample` is of the decision."""
        decision = self.policy.act(obs, instructions, greedy=greedy, generator=generator)
        action, world = decision.action, self.env.unwrapped
        seeds = np.full(len(action), self.seed)
        disturbance = row_noise(seeds, world.start, world.elapsed, action.shape[1:], action.device)
        return decision._replace(action=(action + self.noise * disturbance).clamp(-1, 1))

    def log_prob(
        self, obs: Mapping[str, Any], instructions: Sequence[str], sample: Tensor
    ) -> Tensor:
        """Log-probability of what the policy decided, before the noise."""
        return self.policy.log_prob(obs, instructions, sample)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights of the policy inside."""
        return self.policy.parameters()  # type: ignore[attr-defined]


def table(content: Mapping[str, Any]) -> str:
    """A report as plain text: every policy, then how both worlds agree."""
    lines = [("", "noise", "imagined", "real", "imagined - real")]
    for row in content["policies"]:
        lines.append((row["policy"], f"{row['noise']:g}", *cells(row)))
    found = content["agreement"]
    r, rho, floor = (_text(found[key]) for key in ("pearson", "spearman", "permutation_floor"))
    fisher, starts, without = (
        _between(found[f"pearson_{key}"]) for key in ("fisher", "over_starts", "without_one")
    )
    slope, intercept = (_text(found[f"calibration_{key}"]) for key in ("slope", "intercept"))
    return "\n".join(
        [
            *aligned(lines),
            f"Pearson's r {r} of {found['policies']} policies, 95 % {fisher} over policies, "
            f"{starts} over starts; without one policy {without}; by chance up to {floor}.",
            f"Spearman's rho {rho}. MMRV {found['mmrv']:.3f} (by the other convention "
            f"{found['mmrv_inclusive']:.3f}).",
            f"Bias {found['bias_points']:+.1f} points. Calibration: real = {intercept} + {slope} x "
            "imagined.",
        ]
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(ends: Mapping[str, float] | None) -> str:
    return "-" if ends is None else f"[{ends['low']:.3f}, {ends['high']:.3f}]"

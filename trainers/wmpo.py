"""WMPO from nothing: real episodes, a world model of them, GRPO inside it, and the real test.

    wm-gym wmpo --task Lift --budget 128 --out runs/lift

Every stage is a function of (config, run), a subcommand of its own, and writes into the run folder;
a stage whose result is there is skipped, one that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.token import TokenVLA, TokenVLAConfig
from trainers import bc, grpo
from trainers.rollout import autocast, draw_seeds, evaluate, make_env
from trainers.settings import STARTS, WMPOConfig, check, check_recordings, open_run
from wm_gym.data.collection import TAIL, draw_starts, record_expert, record_policy
from wm_gym.data.episode import Episode
from wm_gym.data.moments import draw_moments, with_moments
from wm_gym.data.reading import load
from wm_gym.evaluation.statistics import rate, wilson
from wm_gym.real.expert import DEMONSTRATION, PLAY, UNFILMED
from wm_gym.real.pool import SimulationPool
from wm_gym.runs import Run, finished
from wm_gym.starts import load_starts, save_starts
from wm_gym.success.classifier import SuccessConfig
from wm_gym.success.training import reconstruction_agreement, train_classifier
from wm_gym.world_model.learning import set_aside
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import PRESETS
from wm_gym.world_model.training import train_world_model

ON_POLICY = 12.0  # how much more often a clip of the rollouts is trained on than one of play
OFF_POLICY = 0.4  # how often one of unfilmed play, by which motion alone learns
UNFILMED_SEED = 1000  # added to the run's: unfilmed play is no play that was filmed
ALIKE = 0.99  # least share of pictures that a classifier must judge alike, real and drawn


def starts(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Draw the three pools of starts: the same ones for every run and replicate."""
    with simulations(config) as pool:
        pools = [draw_starts(config.facts, split, n, pool) for split, n in STARTS.items()]
    save_starts(pools, run.folder)
    return dict(STARTS)


def demonstrations(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Record the expert, and the expert that errs, filmed and not, from training starts.

    Play comes first in the order, and with more or fewer demonstrations stays as it was as long as
    no start has to serve again.
    """
    counts = {name: getattr(config, name) for name in ("demonstrations", "play", "unfilmed")}
    run.stage("demonstrations", counts)  # one that was interrupted goes on with the same
    pool_of_starts = load_starts(config.task, "train", run.folder)
    order = np.random.default_rng(config.seed).permutation(len(pool_of_starts))
    cut = min(config.play, len(order) - config.demonstrations)
    parts = {
        "play": (np.resize(order[:cut], config.play), PLAY, config.seed),
        "demonstrations": (order[cut : cut + config.demonstrations], DEMONSTRATION, config.seed),
    }
    if config.unfilmed:
        again = np.arange(config.unfilmed) % len(order)
        parts["unfilmed"] = again, UNFILMED, config.seed + UNFILMED_SEED
    with simulations(config) as pool:
        for source, (indices, expert, seed) in parts.items():
            record_expert(
                data_file(run, source),
                config.facts,
                pool_of_starts,
                indices,
                expert,
                source=source,
                seed=seed,
                pool=pool,
                filmed=source != "unfilmed",
            )
    return {source: len(indices) for source, (indices, *_) in parts.items()}


def clone(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Clone the demonstrations into the base policy: the weights that play validation best."""
    chunks = bc.chunks_from(
        episodes(run, "demonstrations"), config.facts.instruction, 8, after_success=4
    )
    torch.manual_seed(config.seed)
    n = STARTS["validation"] // 2
    with closing(real_env(config, run, "validation", n)) as env:

        def success(policy: TokenVLA) -> float:
            played = evaluate(policy, env, range(n), dtype=config.grpo.dtype, progress=False)
            return float(played.success.mean())

        shape = {"image_size": config.facts.image_size, "action_dim": config.facts.action_dim}
        policy = TokenVLA(TokenVLAConfig(**shape)).to(device())
        settings = replace(config.clone, seed=config.seed)
        stage = run.stage("clone", settings)
        policy = bc.train(settings, policy, chunks, stage, success)
    keep(policy, run.folder / "policy_base")
    measured = stage.metrics()
    scores = [row["eval/score"] for row in measured]
    best = wilson(round(max(scores) * n), n)
    print(f"Base policy, real validation starts: {best}, the best of {len(scores)} scores")
    return {
        "validation": best._asdict(),
        "validation_episodes": n * len(scores),
        "steps_per_second": measured[-1]["time/steps_per_second"],
    }


def rollouts(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Record `budget` real episodes of the base policy, sampled as GRPO will sample it."""
    sampled = {"temperature": config.grpo.temperature, "dtype": config.grpo.dtype}
    run.stage("rollouts", {"budget": config.budget, **sampled})  # as for demonstrations
    policy = TokenVLA.from_pretrained(run.folder / "policy_base")
    policy.temperature = config.grpo.temperature

    def player(first: int) -> Callable[[dict, list[str]], np.ndarray]:
        generator = torch.Generator().manual_seed(draw_seeds(1, config.seed, first)[0])

        def act(obs: dict, instructions: list[str]) -> np.ndarray:
            with torch.inference_mode(), autocast(policy, config.grpo.dtype):
                return policy.act(obs, instructions, generator=generator).action.numpy()

        return act

    order = np.random.default_rng(config.seed).permutation(STARTS["train"])
    recording = {"return_frames": True, "ignore_terminations": True}
    recording["horizon"] = config.facts.horizon + TAIL
    with closing(real_env(config, run, "train", min(32, config.budget), **recording)) as env:
        record_policy(
            data_file(run, "rollouts"),
            config.facts,
            env,
            player,
            order[-config.budget :],
            source="rollouts",
            seed=config.seed,
        )
    recorded = episodes(run, "rollouts")
    print(f"Base policy, {len(recorded)} sampled rollouts: {rate([e.succeeded for e in recorded])}")
    return {"rollouts": len(recorded), "successes": sum(e.succeeded for e in recorded)}


def world_model(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Train the world model on everything recorded so far, most of all on what the policy does."""
    weights, unfilmed = {"rollouts": ON_POLICY}, []
    if config.unfilmed:
        weights["unfilmed"] = OFF_POLICY
        unfilmed = load(data_file(run, "unfilmed"), pictures=False)
    weights |= config.world_model.weights
    config = replace(config, world_model=replace(config.world_model, weights=weights))
    filmed = episodes(run, "demonstrations", "play", "rollouts")
    return fit_world_model(config, run, filmed, unfilmed)


def fit_world_model(
    config: WMPOConfig,
    run: Run,
    everything: list[Episode],
    unfilmed: list[Episode],
    init: str | None = None,
) -> dict[str, Any]:
    """Train a new world model, or go on with that of `init`, into the run folder."""
    torch.manual_seed(config.seed)
    if init is None:
        model = WorldModel(PRESETS[config.preset]).to(device())
    else:
        model = WorldModel.from_pretrained(init, device=device())
    settings = replace(config.world_model, seed=config.seed)
    stage = run.stage("world_model", {"preset": config.preset, **asdict(settings)})
    told = {"unfilmed": unfilmed, "fine_tune": init is not None}
    report = train_world_model(model, everything, settings, stage, **told)
    model.save_pretrained(run.folder / "world_model", dtype=torch.float16)
    return report


def success(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Train and calibrate the success classifier on the same episodes."""
    return fit_success(config, run, episodes(run, "demonstrations", "play", "rollouts"))


def fit_success(config: WMPOConfig, run: Run, everything: list[Episode]) -> dict[str, Any]:
    """Train and calibrate a success classifier for the run folder's world model."""
    model = load_world_model(run.folder / "world_model", device=device())
    c = model.config
    rest = c.latent_size - c.channels * c.side**2
    shape = SuccessConfig(channels=c.channels, side=c.side, vector=rest)
    settings = replace(config.success, seed=config.seed)
    classifier, real, imagined = train_classifier(model, everything, shape, settings)
    classifier.save_pretrained(run.folder / "success", dtype=torch.float16)
    judged = set_aside(everything, config.world_model.held_out, config.seed)[1]
    agreement = reconstruction_agreement(model, classifier, judged)
    print(
        f"Success, cross-validated, on episodes as recorded: F1 {real.f1:.2f}, false "
        f"{real.false_success:.0%}; as imagined: F1 {imagined.f1:.2f}, false "
        f"{imagined.false_success:.0%}, at threshold {imagined.threshold} held for "
        f"{classifier.hold_k} steps. Of {agreement:.1%} of their pictures it says the same once "
        "the world model has drawn them."
    )
    if agreement < ALIKE:
        print(
            f"That is less than {ALIKE:.0%}: success will be judged by what the world model loses. "
            "Train it for longer, or a larger one."
        )
    return {
        "hold": classifier.hold_k,
        "reconstruction_agreement": agreement,
        "imagined": imagined._asdict(),
        "real": real._asdict(),
    }


def improve(config: WMPOConfig, run: Run) -> dict[str, Any]:
    """Improve the base policy by GRPO in the imagined world, once for each seed."""
    report = {}
    for seed in config.grpo_seeds:
        settings = replace(config.grpo, seed=1000 * config.seed + seed)
        names = ("imagined_envs", "moments", "unanimous")
        world = {name: getattr(config, name) for name in names}
        # Opened first, also where the policy is there already: seeds differ in nothing else.
        stage = run.stage(f"grpo_{seed}", {**asdict(settings), **world})
        name = f"policy_improved_{seed}"
        report[name] = run.once(name, partial(_improve, config, run, settings, stage, name))
    return report


def _improve(
    config: WMPOConfig, run: Run, settings: grpo.GRPOConfig, stage: Run, name: str
) -> dict[str, Any]:
    policy, report = practise(config, run, settings, stage)
    keep(policy, run.folder / name)
    return report


def practise(
    config: WMPOConfig,
    run: Run,
    settings: grpo.GRPOConfig,
    stage: Run,
    **world: Any,
) -> tuple[TokenVLA, dict[str, Any]]:
    """Improve the base policy of `run` by GRPO in its imagined world, into the folder of `stage`.

    `world`: options of the imagined world that it practises in, but for those of all runs. Returns
    the policy and what was imagined.
    """
    policy = TokenVLA.from_pretrained(run.folder / "policy_base", device=device())
    validation = imagined_env(config, run, "validation", settings.eval_episodes)
    begin = load_starts(config.task, "train", run.folder)
    if config.moments:
        moments = draw_moments(episodes(run, "rollouts"), config.moments, config.seed)
        begin = with_moments(begin, moments)
    options = {"starts": begin, "unanimous": config.unanimous}
    env = imagined_env(config, run, "train", config.imagined_envs, **options, **world)
    grpo.train(settings, policy, env, stage, validation)
    last = stage.metrics()[-1]
    return policy, {
        "imagined_success": last["rollout/success_rate"],
        "episodes": last["rollout/episodes"],
        "practice_seconds": last["time/seconds"],
    }


Stage = Callable[[WMPOConfig, Run], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "starts": starts,
    "demonstrations": demonstrations,
    "clone": clone,
    "rollouts": rollouts,
    "train-world-model": world_model,
    "train-success": success,
    "grpo": improve,
}


def do(stage: str, config: WMPOConfig, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Do one of the `stages` unless it is done, and return its report.

    Raises ValueError for an unknown task or preset, before anything is written, and
    FileNotFoundError where a stage before it is missing.
    """
    check(config)
    check_recordings(config)
    names, done = list(stages), finished(config.out)
    for earlier in names[: names.index(stage)]:
        if earlier not in done:
            raise FileNotFoundError(
                f"{config.out} has no finished stage {earlier!r}, which {stage!r} builds on; run "
                f"`wm-gym {earlier}` with the same options first, or `wm-gym wmpo` for all."
            )
    run = open_run(config)
    return run.once(stage, lambda: stages[stage](config, run))


def simulations(config: WMPOConfig) -> SimulationPool:
    """Open the simulator processes; use it in a `with` block."""
    return SimulationPool(config.facts, config.workers)


def real_env(config: WMPOConfig, run: Run, split: str, n: int, **options: Any) -> Any:
    """Make n rows of the real world on the run's starts."""
    options |= {"workers": config.workers, "starts": str(run.folder), "split": split}
    return make_env(config.task, "real", n, **options)


def imagined_env(config: WMPOConfig, run: Run, split: str, n: int, **options: Any) -> Any:
    """Make n rows of the imagined world of this run."""
    made = {name: str(run.folder / name) for name in ("world_model", "success")}
    made |= {"dtype": "bfloat16", "output": "torch", "starts": str(run.folder), "split": split}
    return make_env(config.task, "imagined", n, **(made | options))


def keep(policy: TokenVLA, folder: Path) -> TokenVLA:
    """Save a policy in half precision, and return what was saved: that is what is tested."""
    policy.save_pretrained(folder, dtype=torch.float16)
    return TokenVLA.from_pretrained(folder, device=device())


def episodes(run: Run, *sources: str) -> list[Episode]:
    """Load the recorded episodes of these sources."""
    return load([data_file(run, source) for source in sources])


def data_file(run: Run, source: str) -> Path:
    """Return where a source's episodes lie."""
    return run.folder / "data" / f"{source}.hdf5"


def device() -> torch.device:
    """Return where models train: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

"""Results as Markdown: one function for every kind of file in docs/results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from wm_gym.evaluation.statistics import Difference, Rate

MISSING = "*Not measured yet.*"
STAGES = (
    "starts",
    "demonstrations",
    "clone",
    "rollouts",
    "train-world-model",
    "train-success",
    "grpo",
    "controls",
    "test",
)
MANY = 64  # environments
EPISODES = {
    "play": "episodes of play",
    "unfilmed": "episodes of play without pictures",
    "rollouts": "rollouts of the base policy",
    "validation": "on validation starts to choose the base policy",
}
CONTROLS = {
    "clone_longer": "base policy, cloned further on its demonstrations for as long as GRPO took",
    "clone_successes": "the same, on demonstrations and successful rollouts",
    "blank_picture": "improved policy, shown a grey picture",
}


def results(content: Mapping[str, Any], run_name: str | None = None) -> str:
    """A file of `wm-gym publish`: every run, the pooled gain, the controls, what it cost.

    `run_name`: what to call the run of a file that holds only one replicate.
    """
    runs = [
        (
            f"{run_name or 'replicate ' + str(run['replicate'])}, GRPO seed {run['seed']}",
            _rate(run["base"]),
            _rate(run["improved"]),
            _points(run["paired_difference"]),
            f"{_percent(run['imagined_base'])} → {_percent(run['imagined_improved'])}",
        )
        for run in content["runs"]
    ]
    everything = "both GRPO seeds" if run_name and len(runs) == 2 else "all runs"
    pooled = (f"**{everything}**", "", "", f"**{_points(content['pooled'])}**", "")
    head = ("run", "base policy", "improved policy", "paired difference", "imagined success")
    counts = ", ".join(
        f"{count} {EPISODES.get(name, name)}" for name, count in content["real_episodes"].items()
    )
    pooled_controls = "" if run_name else ", with bootstrap intervals over replicates and starts"
    whose = "" if run_name else " of each replicate"
    controls = [
        (CONTROLS.get(name, name.replace("_", " ")), _rate(rate))
        for name, rate in content["controls"].items()
    ]
    return "\n\n".join(
        [
            "Success in robosuite on the test starts, with 95 % Wilson intervals. The difference "
            "is paired by start, with its 95 % bootstrap interval; over several runs, GRPO seeds "
            "are averaged within a replicate first. The last column is the success of the same "
            "two policies in the imagined world.",
            _table(head, [*runs, pooled]),
            f"Controls, in robosuite on the same test starts{pooled_controls}:",
            _table(("control", "success"), controls),
            f"Episodes{whose} played in robosuite: {counts}. {_machine(content, 'Pooled on')}",
        ]
    )


def stages(content: Mapping[str, Any]) -> str:
    """How long each stage of such a file took, and how to do it again."""
    rows = [(name, _minutes(seconds)) for name, seconds in content["wall_seconds"].items()]
    rows.append(("**all**", _minutes(sum(content["wall_seconds"].values()))))
    note = "A stage that was interrupted counts from its last start, the practice as a whole."
    told = f"{_made(content)} {_machine(content, 'Pooled on')}"
    return f"{_table(('stage', 'wall time'), rows)}\n\n{note} {told}"


def memory(marks: Mapping[str, Mapping[str, Any]]) -> str:
    """The most memory that each stage of a run held, of its marks of finished work by name."""
    most = dict.fromkeys(STAGES, 0)
    for name, mark in marks.items():
        parts = [mark, *(part for part in mark.values() if isinstance(part, dict))]
        held = max(part.get("peak_memory", 0) for part in parts)  # 0: not known
        stage = name.split("_")[0]
        if stage in most:
            most[stage] = max(most[stage], held)
    told = [f"{name} {held / 1e9:.1f}" for name, held in most.items() if held]
    return (
        f"Peak memory of the process of each stage, in GB: {', '.join(told)}. Simulator workers "
        "are processes of their own."
    )


def speed(content: Mapping[str, Any]) -> str:
    """speed.json: its `rows`, flat objects, but for milliseconds by part.

    Those that another command made say how, and have a table of their own.
    """
    told = []
    for made, rows in _by_command(content):
        head = [key for key in rows[0] if key != "made" and not key.endswith("_ms")]
        told += [_columns(rows, head), f"{_made(made)} {_machine(made)}"]
    return "\n\n".join(told)


def speed_summary(content: Mapping[str, Any]) -> str:
    """speed.json in short: chunks of 8 in many environments, every machine in one table.

    Of a world that was never measured in `MANY`, with as many as there were.
    """
    columns = {
        "num_envs": "environments",
        "steps_per_second": "imagined",
        "every_picture": "imagined, every picture",
        "real_steps_per_second": "robosuite",
        "real_every_picture": "robosuite, every picture",
    }
    long = [row for row in content["rows"] if row["chunk"] == 8]
    most: dict[tuple[str, str], int] = {}
    for row in long:
        world = row["device"], row["preset"]
        most[world] = max(row["num_envs"], most.get(world, 0))
    rows = [r for r in long if r["num_envs"] >= min(MANY, most[r["device"], r["preset"]])]
    lines = [
        (
            row["device"],
            "bundled" if row["preset"] == "its own" else f"`{row['preset']}`",
            *(f"{row[key]:,.0f}" if key in row else "–" for key in columns),
        )
        for row in rows
    ]
    return _table(("device", "world model", *columns.values()), lines)


def parts(content: Mapping[str, Any]) -> str:
    """speed.json: milliseconds of a step by part; and by how far into an episode it begins.

    Of the newest command that measured the task's own world.
    """
    whole = [(made, rows) for made, rows in _by_command(content) if "step_seconds" in made]
    if not whole:
        return MISSING
    made, rows = whole[0]
    head = ["num_envs", "chunk", *(key for key in rows[0] if key.endswith("_ms"))]
    clocks = ", ".join(f"{1000 * s:.0f} ms at {at}" for at, s in made["step_seconds"].items())
    return f"{_columns(rows, head)}\n\nA step of 16 rows, by the episode's clock: {clocks}."


def overhead(content: Mapping[str, Any]) -> str:
    """env_overhead.json: what a step adds to its models, and what finished rows cost."""
    modes = ("rows", "as usual"), ("deterministic_rows", "exact")
    lines = [
        (
            str(row["num_envs"]),
            mode,
            f"{1000 * row['model_seconds']:.0f}",
            f"{1000 * row['env_seconds']:.0f}",
            f"{100 * row['overhead']:+.1f} %",
            f"{row.get('times_batched', 1):.1f}",
        )
        for name, mode in modes
        for row in content[name]
    ]
    head = ("rows", "mode", "models, ms", "environment, ms", "added", "times as usual")
    frozen = content["frozen"]
    told = (
        f"With three quarters of the rows finished, a step takes {100 * frozen['ratio']:.0f} % of "
        f"its full time ({1000 * frozen['quarter_seconds']:.0f} of "
        f"{1000 * frozen['full_seconds']:.0f} ms)."
    )
    return f"{_table(head, lines)}\n\n{told} {_made(content)} {_machine(content)}"


def ablations(content: Mapping[str, Any]) -> str:
    """ablations.json: every variant, what it costs and how well it replays held-out episodes."""
    steps = list(content["rows"][0]["psnr"])
    head = ("variant", "calls", "training steps", "GFLOP a frame", *(f"dB at {t}" for t in steps))
    lines = [
        (
            row["variant"],
            str(row.get("sampling_steps", "")),
            str(row["steps"]),
            f"{row['flop'] / 1e9:.2f}",
            *(f"{value:.1f}" for value in row["psnr"].values()),
            *(f"{row['psnr_lost_other_actions'][t]:.1f}" for t in ("8", "16")),
        )
        for row in content["rows"]
    ]
    told = _table((*head, "dB lost at 8", "at 16"), lines)
    return f"{told}\n\n{_made(content)} {_machine(content)}"


def fidelity(content: Mapping[str, Any]) -> str:
    """lift_fidelity.json by step, and its roll-out that is far longer than any in training."""
    names = {
        "psnr": "whole picture, dB",
        "moving_psnr": "what moves, dB",
        "psnr_lost_other_actions": "lost with other actions, dB",
        "gripper_drift_mm": "gripper drift, mm",
        "object_drift_mm": "object drift, mm",
    }
    names = {key: name for key, name in names.items() if key in content}
    lines = [(step, *(f"{content[key][step]:.1f}" for key in names)) for step in content["psnr"]]
    told = [_table(("step", *names.values()), lines)]
    own = content["drift"].get("probe_median_mm", {})
    note = f"{content['episodes']} episodes that it was not trained on; mean dB, median mm."
    for source, by_step in content.get("psnr_by_source", {}).items():
        values = ", ".join(f"{value:.1f} at {step}" for step, value in by_step.items())
        note += f" Episodes of the {source} alone, whole picture: {values}."
    if own:
        errors = " and ".join(f"{value:.1f} mm ({thing})" for thing, value in own.items())
        note += f" The probe that reads positions is itself off by {errors} on real pictures."
    if aside := content.get("aside"):
        begun = f"its object started {aside['mm']:g} mm aside"
        note += f" Upper reference, robosuite itself, {begun}: {_by_step(aside)}."
    if long := content["long"]:
        note += f" In {long['episodes']} much longer episodes: {_by_step(long)}"
        note += f"; upper reference: {_by_step(long['aside'])}." if long.get("aside") else "."
    return "\n\n".join([*told, note, f"{_made(content)} {_machine(content)}"])


def _by_step(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.1f} dB at {step}" for step, value in found["psnr"].items())


def audit(content: Mapping[str, Any]) -> str:
    """lift_audit.json: every figure in a row, and how each part was measured."""
    kinds = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in content["failures"].items())
    wrong, rest = _audited(content)
    lines = [
        *wrong,
        ("what went wrong in hallucinated successes", kinds or "–"),
        ("F1 of the classifier on real video", f"{content['f1_real']:.3f}"),
        ("F1 of imagined outcomes", f"{content['f1_imagined']:.3f}"),
        *rest,
    ]
    told = _table((f"{content['pairs']} paired episodes", ""), lines)
    measured = "\n".join(
        f"- {name}: {part['split']} starts, by `{part['command']}` at commit "
        f"`{str(part['commit'])[:12]}`"
        for name, part in content["measured"].items()
    )
    return f"{told}\n\n{measured}\n\n{_made(content)} {_machine(content)}"


def audit_summary(content: Mapping[str, Any]) -> str:
    """lift_audit.json in short, with the starts that each part was measured on."""
    wrong, rest = _audited(content)
    splits = ", ".join(
        f"{name} from {part['split']} starts" for name, part in content["measured"].items()
    )
    told = _table((f"{content['pairs']} paired episodes", ""), [*wrong, *rest])
    return f"{told}\n\nMeasured: {splits}."


def _audited(content: Mapping[str, Any]) -> tuple[list, list]:
    """Rows of an audit: wrong outcomes; the horizon, how policies rank, perturbed successes."""
    ends, r = content["usable_horizon_ends_by"], content["pearson_r"]
    why = f"ended by {' and '.join(ends)}" if ends else "the whole episode; no limit was reached"
    interval = f" [{r['low']:.3f}, {r['high']:.3f}]" if "low" in r else ""
    policies = f"{content['policies']} policies"
    perturbed = f"{content['counterfactual_sequences']} perturbed sequences, held-out families"
    auroc = content["counterfactual_auroc_perturbed"]
    optimism = content["counterfactual_optimism"]
    wrong = [
        ("real failures imagined as successes", _rate(content["hallucinated_success_rate"])),
        ("real successes imagined as failures", _rate(content["missed_success_rate"])),
        ("outcomes that agree", _rate(content["paired_accuracy"])),
    ]
    rest = [
        ("usable horizon, control steps", f"{content['usable_horizon']} ({why})"),
        (f"Pearson's r of imagined and real success, {policies}", f"{r['value']:.3f}{interval}"),
        (f"MMRV (mean maximum rank violation), {policies}", f"{content['mmrv']:.3f}"),
        (f"AUROC of imagined success, {perturbed}", f"{auroc:.3f}"),
        (
            "optimism: of those that fail in robosuite, imagined as successes",
            _rate(optimism) if optimism else "–",
        ),
    ]
    return wrong, rest


def agreement(content: Mapping[str, Any]) -> str:
    """lift_agreement.json: every policy in both worlds, and how alike these rank them."""
    lines = [
        (_policy(row["policy"]), f"{row['noise']:g}", *_both_worlds(row))
        for row in content["policies"]
    ]
    found = content["agreement"]
    low, high = (found["pearson_fisher"][end] for end in ("low", "high"))
    told = _table(("policy", "noise", "imagined", "real", "imagined − real"), lines)
    figures = (
        f"Pearson's r {found['pearson']:.3f} [{low:.3f}, {high:.3f}], Spearman's rho "
        f"{found['spearman']:.3f}, MMRV {found['mmrv']:.3f}."
    )
    return f"{told}\n\n{figures} {_made(content)} {_machine(content)}"


def overoptimization(content: Mapping[str, Any]) -> str:
    """lift_overoptimization.json: success in both worlds after longer and longer practice."""
    lines = [
        (
            str(row["iteration"]),
            *_both_worlds(row),
            *(
                _rate(share) if (share := row["replayed"][f"{kind}_success_rate"]) else "–"
                for kind in ("hallucinated", "missed")
            ),
        )
        for row in content["rows"]
    ]
    head = ("iterations", "imagined", "real", "imagined − real", "hallucinated", "missed")
    parts, misleads = content["parts_at"], content["misleads_at"]
    if parts is None:
        verdict = "That imagined success becomes optimistic is not shown; "
    else:
        verdict = f"Imagined success has become optimistic at iteration {parts}; "
    if misleads is None:
        verdict += "neither is that hallucinated successes become more frequent."
    else:
        verdict += f"hallucinated successes are more frequent at iteration {misleads}."
    return f"{_table(head, lines)}\n\n{verdict} {_made(content)} {_machine(content)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_command(
    content: Mapping[str, Any],
) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """The rows of speed.json by how they were made: those of the file itself come first."""
    groups = groupby(content["rows"], lambda row: row.get("made", content))
    return [(made, list(rows)) for made, rows in groups]


def _columns(rows: Sequence[Mapping[str, Any]], head: Sequence[str]) -> str:
    names = [key.replace("_", " ") for key in head]
    return _table(names, [[_cell(row[key]) for key in head] for row in rows])


def _rate(rate: Mapping[str, Any]) -> str:
    return str(Rate(*(rate[field] for field in Rate._fields)))


def _points(difference: Mapping[str, Any]) -> str:
    return str(Difference(*(difference[field] for field in Difference._fields)))


def _both_worlds(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return _rate(row["imagined"]), _rate(row["real"]), _points(row["bias"])


def _policy(name: str) -> str:
    """Words for "00080", "policy_base", "policy_improved_0", "clone_longer", "RUN/policy_base"."""
    run, _, name = name.rpartition("/")
    where = f" ({run})" if run else ""
    if name.isdigit():
        return f"after {int(name)} iterations{where}"
    words = name.removeprefix("policy_").replace("_", " ")
    kind, _, seed = words.rpartition(" ")
    return (f"{kind}, GRPO seed {seed}" if seed.isdigit() else words) + where


def _percent(rate: Mapping[str, Any]) -> str:
    return f"{100 * rate['rate']:.1f} %"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _made(content: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, content["seeds"]))
    commit, _, dirty = str(content["commit"]).partition("-")
    commit = f"{commit[:12]}{dirty and '-dirty'}"
    return f"Made by `{content['command']}` at commit `{commit}`, seeds {seeds}."


def _machine(content: Mapping[str, Any], label: str = "Machine:") -> str:
    machine = content["machine"]
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ", no GPU"
    return f"{label} {machine['cores']} cores of {machine['cpu']}{gpu}; {content['date'][:10]}."

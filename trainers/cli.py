"""The command `wm-gym`: every subcommand is a function of one config dataclass.

wm-gym quickstart                          improve the bundled policy, test it in robosuite
wm-gym wmpo --task Lift --budget 128       the whole method, from nothing
wm-gym <stage> --out runs/lift             one stage of it
wm-gym train-world-model data/ --out ...   a world model of any recorded episodes
wm-gym publish runs/lift ...               pool finished runs into a results file
wm-gym bundle runs/lift                    ship a run with the package
wm-gym fidelity --episodes ...             replay held-out episodes in a world model
wm-gym audit                               replay imagined episodes in robosuite
wm-gym agree                               play policies in both worlds
wm-gym overoptimize --run runs/lift        practise too long: when do the worlds part?
wm-gym report runs/audit                   show an audit as one HTML page
wm-gym counterfactuals                     perturb successes: are the failures imagined?
wm-gym presets                             what world models of every size cost
wm-gym demo --backend imagined             film n environments side by side
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from trainers import compare, own, wmpo
from trainers.agree import AgreeConfig, agree
from trainers.audit import AuditConfig, audit
from trainers.bundle import BundleConfig, ship
from trainers.counterfactuals import CounterfactualsConfig, counterfactuals
from trainers.demo import DemoConfig, demo
from trainers.fidelity import FidelityConfig, fidelity
from trainers.overoptimize import OveroptimizeConfig, overoptimize
from trainers.quickstart import QuickstartConfig, quickstart
from trainers.report import ReportConfig, report
from trainers.settings import WMPOConfig
from wm_gym.errors import UserError
from wm_gym.machine import cores

STAGES = {**wmpo.STAGES, "controls": compare.controls, "test": compare.test}


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """Which finished runs go into which results file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of `wm-gym wmpo`, one a replicate."""
    path: Path = Path("docs/results/lift_wmpo.json")


def run_stage(name: str) -> Callable[[WMPOConfig], None]:
    """Return the subcommand that does one stage of WMPO in its run folder."""

    def command(config: WMPOConfig) -> None:
        print(wmpo.do(name, config, STAGES))

    command.__doc__ = STAGES[name].__doc__
    return command


def run_wmpo(config: WMPOConfig) -> None:
    """Do all stages of WMPO that are not done yet: from nothing to the real test."""
    for number, name in enumerate(STAGES, 1):
        print(f"[{number}/{len(STAGES)}] {name}", flush=True)
        wmpo.do(name, config, STAGES)
    path = config.out / "results.json"
    print(compare.publish([config.out], path))
    print(f"Written to {path}")


def run_publish(config: PublishConfig) -> None:
    """Pool finished runs into one results file and print its table."""
    print(compare.publish(config.runs, config.path))


def run_presets() -> None:
    """Print what the world model of every preset costs: weights, FLOP, memory."""
    from wm_gym.world_model.sizes import table

    print(table())


def main() -> None:
    """Run the command line; errors that a user can mend are printed without a traceback."""
    set_threads()
    commands: dict[str, Callable[..., Any]] = {"quickstart": _plain(quickstart, QuickstartConfig)}
    commands["wmpo"] = _plain(run_wmpo, WMPOConfig)
    commands |= {name: _plain(run_stage(name), WMPOConfig) for name in STAGES}
    commands["train-world-model"] = _plain(own.train_world_model, own.TrainWorldModelConfig)
    commands["train-success"] = _plain(own.train_success, own.EpisodesConfig)
    commands["publish"] = _plain(run_publish, PublishConfig)
    commands["bundle"] = _plain(ship, BundleConfig)
    commands["fidelity"] = _plain(fidelity, FidelityConfig)
    commands["audit"] = _plain(audit, AuditConfig)
    commands["agree"] = _plain(agree, AgreeConfig)
    commands["overoptimize"] = _plain(overoptimize, OveroptimizeConfig)
    commands["report"] = _plain(report, ReportConfig)
    commands["counterfactuals"] = _plain(counterfactuals, CounterfactualsConfig)
    commands["presets"] = run_presets
    commands["demo"] = _plain(demo, DemoConfig)
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="wm-gym")
    except (ValueError, OSError, ImportError, UserError) as error:
        if os.environ.get("WM_GYM_TRACEBACK"):
            raise
        sys.exit(f"wm-gym: {error}")
    except KeyboardInterrupt:
        sys.exit("\nwm-gym: interrupted; the same command goes on from what it has kept.")


def set_threads() -> None:
    """Let PyTorch use the cores this process may use; more threads than cores collapse."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), cores()))


def _plain(function: Callable[[Any], Any], config: type) -> Callable[..., Any]:
    """Give the options of `config` without a prefix to a command that takes it."""

    def command(config):  # annotated below
        return function(config)

    command.__annotations__["config"] = Annotated[config, tyro.conf.arg(name="")]
    command.__doc__ = function.__doc__
    return command


if __name__ == "__main__":
    main()

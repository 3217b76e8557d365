"""The command `wm-gym audit`: who plays what, what is written, how an interrupted audit goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.fakes import FakeWorldModel
from tests.trainers.two_worlds import Judge, Pusher, Slippery
from trainers import audit as module
from trainers.audit import AuditConfig, audit, labels, resolve
from trainers.cli import main
from trainers.replay import judge
from wm_gym.evaluation.audit import Pair, read_pairs
from wm_gym.evaluation.page import write_page
from wm_gym.evaluation.probe import PositionProbe
from wm_gym.evaluation.video import GREEN, RED, write_video
from wm_gym.hub import fingerprint
from wm_gym.imagined import ImaginedVectorEnv


def settings(**options) -> AuditConfig:
    given = {"policies": ("a/bold",), "episodes": 4, "workers": 3, "out": Path("out")}
    return AuditConfig(**(given | options))


def steps_of(world, **options) -> list[tuple]:
    """Run the audit; return (start, imagined, real, judged) of each pair."""
    config = settings(**options)
    audit(config)
    return [pair[1:5] for pair in read_pairs(config.out / "audit.csv")]


def filmed(world) -> list[str]:
    """Names of the videos written, all into one folder."""
    assert {path.parent for path, _ in world.films} == {Path("out/videos")}
    return [path.name for path, _ in world.films]


# The picture of start s has level 100 + s + 2k after k steps of the bold policy: 179 or more
# after 40 steps where s is 0, 39 where it is 1 or 2, 38 where it is 3.
IMAGINED = [40, 39, 39, 38]


def test_where_both_worlds_are_one_the_three_verdicts_agree(world):
    assert steps_of(world) == [(s, k, k, k) for s, k in enumerate(IMAGINED)]


def test_where_the_hand_slips_the_dynamics_hallucinate(world):
    world.grip = 0.5  # level 100 + s + k: at most 167
    assert steps_of(world) == [(s, k, None, None) for s, k in enumerate(IMAGINED)]
    found = json.loads(Path("out/audit.json").read_text())
    assert found["hallucinated_by_dynamics"]["successes"] == 4
    assert found["hallucinated_by_classifier"]["successes"] == 0


def test_where_the_predicate_is_stricter_the_classifier_is_wrong(world):
    world.predicate = 229.5 / 255  # reached after 64 steps by starts 2 and 3 alone
    expected = [(0, 40, None, 40), (1, 39, None, 39), (2, 39, 64, 39), (3, 38, 64, 38)]
    assert steps_of(world) == expected
    found = json.loads(Path("out/audit.json").read_text())
    assert found["hallucinated_by_classifier"]["successes"] == 2


def test_where_the_imagination_is_timid_the_dynamics_miss(world):
    world.grip = 4.0  # the shy policy imagines level 100 + s + k / 2, and gets 100 + s + 2k
    found = steps_of(world, policies=("a/shy",))
    assert found == [(s, None, k, k) for s, k in enumerate(IMAGINED)]
    report = json.loads(Path("out/audit.json").read_text())
    assert report["missed_by_dynamics"]["successes"] == 4


def test_the_classifiers_own_rule_judges_the_real_video(world):
    world.judge.hold_k, world.judge.hold_n = 3, 4  # three hits take two steps more than one
    assert steps_of(world) == [(s, k + 2, k, k + 2) for s, k in enumerate(IMAGINED)]


def test_the_largest_probability_after_a_decision_is_kept(world):
    world.policies["a/bold"] = Pusher(-1.0)  # level 92 + s after the first, darker after each
    steps_of(world)
    pairs = read_pairs("out/audit.csv")
    assert [p.probability for p in pairs] == [round((92 + s) / 255, 4) for s in range(4)]


def test_policies_play_greedily_and_the_simulator_repeats_their_actions(world):
    world.policies["a/bold"].levels.data += torch.tensor(0.25)
    steps_of(world)
    images, instructions, greedy = zip(*world.policies["a/bold"].told, strict=True)
    assert images[0] == [100, 101, 102, 103] and images[1] == [118, 119, 120, 121]
    assert set(greedy) == {True} and instructions[0] == ["lift the red cube"] * 4
    imagined, real = (np.stack(world.played[name]) for name in ("imagined", "real"))
    assert imagined.shape == (8, 4, 8, 7) and np.array_equal(imagined, real)
    assert imagined[..., 0] == pytest.approx(2.25 / 12.75)


def test_many_episodes_are_played_in_waves_that_change_nothing(world, monkeypatch):
    world.model.noise = 0.3
    whole = steps_of(world, episodes=5)
    assert len({row[1] for row in whole}) > 3  # the noise is felt
    kept = read_pairs("out/audit.csv")
    world.made.clear()
    monkeypatch.setattr(module, "ROWS", 2)
    steps_of(world, episodes=5, out=Path("waves"))
    assert read_pairs("waves/audit.csv") == kept
    assert [(name, env.num_envs) for name, env in world.made] == [("imagined", 2), ("real", 2)]
    assert all(env.unwrapped.closed for _, env in world.made)


def test_another_seed_is_another_noise(world):
    world.model.noise = 0.3
    assert steps_of(world) != steps_of(world, seed=1000, out=Path("other"))


def test_an_episode_ends_at_the_horizon_whatever_the_chunk(world):
    # 13 decisions of 5 steps; only the 64th picture, of level 228, is a hit, and one is too few.
    world.policies["a/bold"] = Pusher(2.0, chunk=5)
    world.judge = Judge(227.5 / 255, hold_k=2, hold_n=2)
    world.predicate = 227.5 / 255
    assert steps_of(world, episodes=1) == [(0, None, 64, None)]


def test_an_interrupted_audit_goes_on_with_the_next_policy(world, monkeypatch):
    both = settings(policies=("a/bold", "a/shy"))
    act = Pusher.act

    def fail(policy, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(world.policies["a/shy"], "act", fail)
    with pytest.raises(KeyboardInterrupt):
        audit(both)
    assert not (both.out / "audit.csv").exists()
    monkeypatch.setattr(world.policies["a/bold"], "act", fail)  # whoever plays again is caught
    monkeypatch.setattr(world.policies["a/shy"], "act", act.__get__(world.policies["a/shy"]))
    world.made.clear()
    audit(both)
    assert [name for name, _ in world.made] == ["imagined", "real"]
    pairs = read_pairs(both.out / "audit.csv")
    assert [p.policy for p in pairs] == ["bold"] * 4 + ["shy"] * 4
    assert [p.imagined_step for p in pairs] == [*IMAGINED, *[None] * 4]
    shown = ["bold-0-success.mp4", "bold-1-success.mp4", "shy-0-failure.mp4", "shy-1-failure.mp4"]
    assert filmed(world) == shown


def test_the_first_of_each_kind_are_filmed_whatever_the_wave(world, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    world.predicate = 228.5 / 255  # reached after 64 steps by start 1 and all after it
    audit(settings(episodes=5))
    success = [f"bold-{s}-success.mp4" for s in (1, 2)]
    assert filmed(world) == ["bold-0-hallucinated.mp4", *success]


def test_what_went_wrong_is_named_by_real_and_imagined_positions(world, monkeypatch):
    """The simulator has the object 2 cm up at the end; in the picture all stays at 0."""
    world.grip, step = 0.5, ImaginedVectorEnv.step

    def measured(env, actions):
        result = step(env, actions)
        if isinstance(env.world_model, Slippery):
            clock = env.elapsed[:, None] + np.arange(-8, 1)
            height = np.where(clock > 60, 0.02, 0.0)
            rows = np.zeros((len(clock), 9, 3), np.float32)
            held = np.concatenate([rows[..., :2], height[..., None]], -1).astype(np.float32)
            low_dim = [{"robot0_eef_pos": r, "object": h} for r, h in zip(rows, held, strict=True)]
            env.playbacks = [SimpleNamespace(states=rows[0], low_dim=row) for row in low_dim]
        return result

    taught = []
    monkeypatch.setattr(ImaginedVectorEnv, "step", measured)
    monkeypatch.setattr(module, "play_for_probe", lambda *given: given)
    monkeypatch.setattr(
        module, "train_probe", lambda played, *_: taught.append(played) or PositionProbe()
    )
    monkeypatch.setattr(module, "read", lambda _, frames: np.zeros((len(frames), 2, 3)))
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "red", lambda frames: np.full(len(frames), 40))
    audit(settings(episodes=3))
    assert [pair.failure for pair in read_pairs("out/audit.csv")] == ["late"] * 3
    assert taught == [(Path("out"), "Lift", 0, 3)]  # once, for both waves
    found = json.loads(Path("out/audit.json").read_text())
    assert found["failures"] == {"late": 3}
    assert found["drift"]["object"] == {"imagined": [0.0] * 64, "real": [0.0] * 60 + [20.0] * 4}
    assert (found["usable_horizon"], found["usable_horizon_ends_by"]) == (38, ["agreement"])
    assert np.load("out/tracks_0.npy").shape == (3, 3, 65, 2, 3)


def test_one_probe_reads_both_worlds_and_is_kept(tmp_path, monkeypatch):
    learnt = []

    def train(episodes, *_):
        learnt.append(episodes)
        probe = PositionProbe()
        probe.middle.fill_(float(len(learnt)))
        return probe

    monkeypatch.setattr(module, "play_for_probe", lambda folder, *_: folder)
    monkeypatch.setattr(module, "train_probe", train)
    monkeypatch.setattr(module, "read", lambda probe, film: film + probe.middle[:3].numpy())
    config = settings(out=tmp_path)
    first, again = module.learnt_probe(config), module.learnt_probe(config)
    assert learnt == [tmp_path]
    assert float(again.middle[0]) == float(first.middle[0]) == 1

    told = {"robot0_eef_pos": np.full((2, 3), 7.0), "object": np.full((2, 3), 8.0)}
    imagined = SimpleNamespace(frames=np.zeros((1, 2, 2, 3)))
    real = SimpleNamespace(frames=np.full((1, 2, 2, 3), 4.0), measured=[told])
    found = module.locate(again, imagined, real)
    assert found.shape == (3, 1, 2, 2, 3)
    assert found[0, 0, :, 0].min() == 7 and found[0, 0, :, 1].max() == 8
    assert (found[1] == 1).all() and (found[2] == 5).all()


def test_no_more_than_four_hallucinations_are_filmed(world):
    world.grip = 0.5
    audit(settings(episodes=5))
    assert filmed(world) == [f"bold-{s}-hallucinated.mp4" for s in range(4)]


def test_a_film_shows_the_real_replay_beside_what_was_imagined(world):
    world.grip = 0.5
    audit(settings(episodes=5))
    frames = world.films[3][1]  # of start 3: level 103 + k, and imagined 103 + 2k
    assert frames.shape == (65, 20 + 256, 2 * 256, 3) and frames.dtype == np.uint8
    assert frames[0, 142, [128, 384], 0].tolist() == [103, 103]
    assert frames[-1, 142, [128, 384], 0].tolist() == [103 + 64, 103 + 128]
    assert frames[0, -1, [0, -1]].tolist() == [list(RED), list(GREEN)]


def test_a_finished_audit_is_shown_again_without_playing(world, capsys):
    audit(settings())
    first = json.loads(Path("out/audit.json").read_text())
    shown = capsys.readouterr().out
    world.made.clear()
    audit(settings())
    again = json.loads(Path("out/audit.json").read_text())
    assert not world.made and capsys.readouterr().out == shown
    assert again["played"] == first["played"] and again["pairs"] == 4


def test_results_are_not_taken_for_those_of_other_weights(world):
    audit(settings())
    with torch.no_grad():
        world.model.conv.bias += 1
    with pytest.raises(ValueError, match=r"another config .*weights\..* choose another folder"):
        audit(settings())


@pytest.mark.parametrize("change", ["weight", "name", "config"])
def test_a_fingerprint_knows_weights_and_config(change):
    made = [Pusher(1.0), Pusher(1.0)]
    assert fingerprint(made[0]) == fingerprint(made[1])
    if change == "weight":
        made[1].levels.data += 1e-6
    elif change == "name":
        made[1].level = made[1].levels
        del made[1].levels
    else:
        made[1].config = SimpleNamespace(chunk=7)
    assert fingerprint(made[0]) != fingerprint(made[1])


def test_the_first_picture_is_no_verdict():
    levels = np.array([[255, 255, 0, 255, 255], [255, 255, 0, 0, 255]], np.uint8)
    videos = np.broadcast_to(levels[..., None, None, None], (2, 5, 8, 8, 3))
    assert judge(FakeWorldModel(), Judge(hold_k=2, hold_n=2), videos.copy()) == [4, None]


def test_what_is_not_named_is_bundled(monkeypatch):
    names = ["lift/policy_base", "lift/policy_improved", "lift/success", "stack/policy_base"]
    monkeypatch.setattr(module, "bundled", lambda: names)
    found = resolve(AuditConfig(world_model="w", success="mine"))
    assert found.policies == ("lift/policy_base", "lift/policy_improved")
    assert (found.world_model, found.success, found.starts) == ("w", "mine", None)
    assert resolve(AuditConfig()).success == "lift"
    with pytest.raises(ValueError, match="got world_model without success. Name both"):
        resolve(AuditConfig(world_model="w"))


def test_or_of_the_run_folder(tmp_path):
    for name in ("policy_improved_1", "policy_improved_0", "policy_base", "policy_clone_longer"):
        (tmp_path / name).mkdir()
    found = resolve(AuditConfig(run=tmp_path))
    names = ("policy_base", "policy_improved_0", "policy_improved_1")
    assert found.policies == tuple(str(tmp_path / name) for name in names)
    assert found.world_model == str(tmp_path / "world_model")
    assert found.success == str(tmp_path / "success")
    assert found.starts == tmp_path
    named = resolve(AuditConfig(run=tmp_path, policies=("p",), starts=Path("s")))
    assert (named.policies, named.starts) == (("p",), Path("s"))


def test_a_run_folder_without_policies_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no policy_base .* in {tmp_path}; name --pol"):
        resolve(AuditConfig(run=tmp_path))


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (("lift/policy_base",), ["policy_base"]),
        (("lift/policy_base", "runs/0/policy_improved_0"), ["policy_base", "policy_improved_0"]),
        (("runs/0/base", "runs/1/base", "new"), ["0/base", "1/base", "new"]),
    ],
)
def test_policies_are_called_by_what_tells_them_apart(policies, expected):
    assert labels(policies) == expected


def test_a_policy_named_twice_is_refused():
    with pytest.raises(ValueError, match="every policy once, got a/b, a/b; drop"):
        labels(["a/b", "a/b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be an integer at least 1, got 0"),
        ({"episodes": 6}, "5 validation starts for 6 episodes; .* another --split"),
        ({"task": "Fly"}, "Unknown task 'Fly'"),
        ({"policies": ("a/bold", "a/bold")}, "every policy once"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(world, options, message):
    with pytest.raises(ValueError, match=message):
        audit(settings(**options))
    assert not Path("out").exists() and not world.made


def test_the_command_writes_its_table_its_report_and_its_page(world, monkeypatch, capsys):
    monkeypatch.setattr(module, "write_video", write_video)
    monkeypatch.setattr(module, "write_page", write_page)
    world.grip = 0.5
    arguments = "audit --policies a/bold a/shy --episodes 4 --workers 3 --out out --split test"
    monkeypatch.setattr(sys, "argv", ["wm-gym", *arguments.split(), "--starts", "mine"])
    main()
    assert world.asked == ("Lift", "test", Path("mine"))
    printed = capsys.readouterr().out
    assert "shy 4 0.0 % 0.0 % 0.0 % [0.0, 49.0] (n = 4) -" in " ".join(printed.split())
    assert "hallucinated successes, the classifier's own errors: 0 of 4." in printed
    assert printed.endswith("Written to out: audit.csv, audit.json, report.html, videos\n")
    found = json.loads(Path("out/audit.json").read_text())
    assert found["command"].startswith("wm-gym audit --policies") and found["machine"]
    assert (found["pairs"], found["split"], found["world_model"]) == (8, "test", "lift")
    assert found["hallucinated_success_rate"]["rate"] == 0.5
    assert list(found["policies"]) == list(found["played"]) == ["bold", "shy"]
    assert found["weights"]["policies"]["shy"] == fingerprint(world.policies["a/shy"])
    assert found["weights"]["world_model"] == fingerprint(world.model)
    assert set(found["played"]["shy"]) == {"commit", "date", "seconds"}
    assert read_pairs("out/audit.csv")[0] == Pair("bold", 0, 40, None, None, 0.8941)
    page = Path("out/report.html").read_text()
    assert page.count("<video") == len(list(Path("out/videos").iterdir())) == 4 + 2

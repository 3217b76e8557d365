"""Whole trainings: resuming bit for bit, and a square that learns to move."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows, holdout_episodes
from wm_gym.evaluation.fidelity import replay_latents
from wm_gym.runs import Run
from wm_gym.world_model import reading, training
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.motion import MotionTrainingConfig
from wm_gym.world_model.reading import ReadingTrainingConfig
from wm_gym.world_model.training import Learner, WorldModelTrainingConfig, train_world_model

STEPS = (8, 16, 32, 48)


def square(seed: int, t: int = 48) -> Episode:
    """A white square that falls at the first step, then moves left or right as it is told.

    Its robot measures x, in pixels: 0, 4 or 8.
    """
    rng = np.random.default_rng(seed)
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rng.choice([-1, 1], t)
    frames = np.zeros((t + 1, 16, 16, 3), np.uint8)
    places = np.zeros((t + 1, 1), np.float32)
    x = 4 * int(rng.integers(3))
    for i in range(t + 1):
        y = 8 if i else 0
        frames[i, y : y + 8, x : x + 8] = 255
        places[i] = x
        if i < t:
            x = int(np.clip(x + 4 * actions[i, 0], 0, 8))
    return Episode(frames, actions, np.zeros(t, bool), low_dim={"x": places})


@pytest.fixture(scope="module")
def squares() -> list[Episode]:
    return [square(seed) for seed in range(24)]


STILL = MotionTrainingConfig(steps=2, unroll=4, batch_size=4)
GLANCE = ReadingTrainingConfig(steps=2, batch_size=4)
SHORT = WorldModelTrainingConfig(
    steps=5,
    lengths=((0.4, 4), (1.0, 8)),  # 2 and 3 steps
    transitions=16,
    pictures=8,
    warmup=2,
    validate_every=2,
    held_out=0.1,
    learning_rate=1e-2,
    motion=STILL,
    reading=GLANCE,
)


def weights(model: WorldModel) -> list[torch.Tensor]:
    """Return all that is saved: the scale of the body, too."""
    return [value.clone() for value in model.state_dict().values()]


def interrupted(monkeypatch, at: int) -> None:
    """Let the next training be interrupted at a step."""
    step = Learner.step

    def stop(self, batch, number, generator):
        if number == at:
            raise KeyboardInterrupt
        return step(self, batch, number, generator)

    monkeypatch.setattr(Learner, "step", stop)


def test_pictures_of_another_size_are_refused_before_training(small, squares, tmp_path):
    larger = [replace(e, frames=e.frames.repeat(2, axis=1).repeat(2, axis=2)) for e in squares]
    with pytest.raises(ValueError, match="16 x 16; the episodes have 32 x 32"):
        train_world_model(small(0), larger, SHORT, Run(tmp_path))
    assert not list(tmp_path.rglob("*.pt"))


def test_motion_alone_learns_from_what_nobody_filmed(small, squares, tmp_path, monkeypatch):
    moved, pictures = [], []

    def noted(motion, bodies, actions, config, seed, weights):
        moved.append(dict(zip([len(a) for a in actions], weights, strict=True)))

    def windows(episodes, **options):
        pictures.append((len(episodes), options["weights"]))
        return Windows(episodes, **options)

    monkeypatch.setattr(training, "fit_motion", noted)
    monkeypatch.setattr(training, "Windows", windows)
    first = squares[0]
    low_dim = {key: rows[:7] for key, rows in first.low_dim.items()}
    frames = np.zeros((7, 0, 0, 3), np.uint8)
    short = Episode(frames, first.actions[:6], first.success[:6], source="blind", low_dim=low_dim)
    config = replace(SHORT, weights={"blind": 0.25})
    train_world_model(small(0), squares, config, Run(tmp_path), unfilmed=[short])
    assert moved == [{len(first): 1.0, 6: 0.25}]
    assert pictures == [(len(squares) - round(0.1 * len(squares)), {})]


def test_clips_grow_and_batches_keep_their_size(small, squares, tmp_path, monkeypatch):
    shapes, step = [], Learner.step

    def noted(self, batch, *args):
        shapes.append(tuple(batch["valid"].shape))
        return step(self, batch, *args)

    monkeypatch.setattr(Learner, "step", noted)
    config = WorldModelTrainingConfig(
        steps=8,
        lengths=((0.25, 2), (0.5, 6), (0.75, 8), (1.0, 40)),
        transitions=24,
        most_clips=5,
        pictures=8,
        validate_every=8,
        held_out=0.1,
        motion=STILL,
        reading=GLANCE,
    )
    train_world_model(small(0), squares, config, Run(tmp_path))
    # 24 / 2 would be 12 clips, which are more than 5; 24 / 40 would be none.
    assert shapes == [(5, 2)] * 2 + [(4, 6)] * 2 + [(3, 8)] * 2 + [(1, 40)] * 2


def test_a_body_learns_from_single_pictures_of_any_moment(small, squares, tmp_path, monkeypatch):
    batches, step = [], Learner.step

    def noted(self, batch, *args):
        batches.append(batch)
        return step(self, batch, *args)

    monkeypatch.setattr(Learner, "step", noted)
    config = WorldModelTrainingConfig(
        steps=2, pictures=50, validate_every=2, held_out=0.1, motion=STILL, reading=GLANCE
    )
    model = WorldModel(replace(small(0).config, width=0, vector=0))
    train_world_model(model, squares, config, Run(tmp_path))
    assert [batch["valid"].shape for batch in batches] == [(50, 1)] * 2
    begun = (batches[0]["memory"] == batches[0]["anchor"][:, None]).flatten(1).all(1)
    assert begun.sum() < 10  # as seldom as they are


@pytest.mark.parametrize("length", [4, 8, 48])
def test_the_share_of_beginnings_holds_for_every_length(
    small, squares, tmp_path, monkeypatch, length
):
    begun, step = [], Learner.step

    def noted(self, batch, *args):
        begun.append(bool((batch["memory"] == batch["anchor"][:, None]).all()))
        return step(self, batch, *args)

    monkeypatch.setattr(Learner, "step", noted)
    config = WorldModelTrainingConfig(
        steps=4,
        lengths=((1.0, length),),
        beginnings=1.0,
        transitions=4 * length,
        pictures=8,
        held_out=0.1,
        motion=STILL,
        reading=GLANCE,
    )
    train_world_model(small(0), squares, config, Run(tmp_path))
    assert begun == [True] * 4


@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_training_ends_with_the_same_weights(small, squares, tmp_path, monkeypatch, at):
    whole = small(0)
    expected = train_world_model(whole, squares, SHORT, Run(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, at)  # before the first checkpoint, or after it
        train_world_model(small(0), squares, SHORT, Run(tmp_path / "broken"))
    torch.manual_seed(99)
    resumed = small(0 if at == 1 else 1)
    run = Run(tmp_path / "broken", resume=True)
    assert train_world_model(resumed, squares, SHORT, run) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    logged = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in r.metrics()]
        for r in (Run(tmp_path / "whole", resume=True), run)
    ]
    assert [line["step"] for line in logged[0]] == [2, 4, 5]
    assert logged[1] == logged[0]


def test_what_was_logged_before_the_first_checkpoint_is_logged_once(
    small, squares, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_world_model(small(0), squares, SHORT, Run(tmp_path))
    run = Run(tmp_path, resume=True)
    train_world_model(small(0), squares, SHORT, run)
    assert [line["step"] for line in run.metrics()] == [2, 4, 5]


@pytest.mark.parametrize("then", ["fit_reader", "learn"])
def test_what_was_learnt_before_is_not_learnt_again(small, squares, tmp_path, monkeypatch, then):
    """Motion, and what is read from pictures; interrupted after the one or after both."""
    whole = small(0)
    expected = train_world_model(whole, squares, SHORT, Run(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, then, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_world_model(small(0), squares, SHORT, Run(tmp_path / "broken"))
    monkeypatch.setattr(training, "fit_motion", lambda *_: pytest.fail("learnt again"))
    if then == "learn":
        monkeypatch.setattr(training, "fit_reader", lambda *_: pytest.fail("learnt again"))
    resumed = small(1)
    run = Run(tmp_path / "broken", resume=True)
    assert train_world_model(resumed, squares, SHORT, run) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_finished_training_is_not_repeated(small, squares, tmp_path, monkeypatch):
    first, again = small(0), small(1)
    expected = train_world_model(first, squares, SHORT, Run(tmp_path))
    interrupted(monkeypatch, at=0)
    assert train_world_model(again, squares, SHORT, Run(tmp_path, resume=True)) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


@pytest.mark.parametrize("name", ["fit_motion", "fit_reader"])
def test_what_is_learnt_before_stays_as_it_was_learnt(small, squares, tmp_path, monkeypatch, name):
    found, fit = [], getattr(training, name)

    def noted(part, *args):
        new = [p.clone() for p in part.parameters()]
        fit(part, *args)
        found.extend((part, new, [p.clone() for p in part.parameters()]))

    monkeypatch.setattr(training, name, noted)
    train_world_model(small(0), squares, SHORT, Run(tmp_path))
    part, new, learnt = found
    assert all(torch.equal(a, b) for a, b in zip(learnt, part.parameters(), strict=True))
    assert not torch.equal(new[0], learnt[0])


def test_training_ends_with_the_averaged_weights(small, squares, tmp_path):
    model, run = small(0), Run(tmp_path)
    train_world_model(model, squares, SHORT, run)
    state = run.load()
    average = state["average"]["shadow_params"]
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), average, strict=True))
    last = state["model"]["renderer.leave.bias"]
    assert not torch.equal(last, model.renderer.leave.bias) and state["step"] == 5
    assert not model.training


def test_a_single_episode_to_judge_by_is_refused_before_training(small, tmp_path, monkeypatch):
    interrupted(monkeypatch, at=0)
    with pytest.raises(ValueError, match="compared with one another, which takes 2; got 1"):
        train_world_model(small(0), [square(s) for s in range(2)], SHORT, Run(tmp_path))


def test_short_episodes_are_judged_at_the_steps_that_they_have(small, tmp_path):
    episodes = [square(seed, t=15) for seed in range(20)]
    report = train_world_model(small(0), episodes, SHORT, Run(tmp_path))
    assert sorted(report) == sorted(
        f"{name}/{step}" for name in ("psnr", "psnr_first", "psnr_other") for step in (1, 8)
    )


def test_a_source_without_weight_is_not_learnt_from(small, squares, tmp_path, monkeypatch):
    """Its squares are grey."""
    grey = [replace(e, frames=e.frames // 2, source="grey") for e in squares]
    drawn, read = set(), set()
    step, moments = Learner.step, reading.moments

    def noted_step(self, batch, *args):
        drawn.update(batch["future"].unique().tolist())
        return step(self, batch, *args)

    def noted_moments(*args):
        shown, bodies = moments(*args)
        read.update(shown.unique().tolist())
        return shown, bodies

    monkeypatch.setattr(Learner, "step", noted_step)
    monkeypatch.setattr(reading, "moments", noted_moments)
    config = replace(SHORT, weights={"grey": 0.0})
    train_world_model(small(0), squares + grey, config, Run(tmp_path))
    assert drawn == {0, 255}
    assert read == {-1.0, 1.0}


def scored(monkeypatch, *scores: float) -> None:
    """Let validations give these scores, one after another, and then the last."""
    left = list(scores)

    def report(model, episodes, steps):
        score = left.pop(0) if len(left) > 1 else left[0]
        return {f"{name}/{t}": score for name in ("psnr", "psnr_other") for t in steps}

    monkeypatch.setattr(training, "replay_report", report)


PATIENT = replace(SHORT, steps=9, validate_every=1, patience=2)


def test_training_ends_when_replays_get_no_better_with_the_best_weights(
    small, squares, tmp_path, monkeypatch
):
    best, run = small(0), Run(tmp_path)
    scored(monkeypatch, 1, 5, 4, 5, 9)  # as good is no better; the 9 would come too late
    train_world_model(best, squares, PATIENT, run)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    state = run.load("best")
    assert state["step"] == 2
    average = state["average"]["shadow_params"]
    assert all(torch.equal(p, a) for p, a in zip(best.parameters(), average, strict=True))
    again = small(1)
    train_world_model(again, squares, PATIENT, Run(tmp_path, resume=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(best), weights(again), strict=True))
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]


def test_a_body_that_is_not_recorded_is_refused_before_training(
    small, squares, tmp_path, monkeypatch
):
    interrupted(monkeypatch, at=0)
    episodes = [Episode(e.frames, e.actions, e.success, source="play") for e in squares]
    with pytest.raises(ValueError, match="'play' holds no x; it has pictures alone"):
        train_world_model(small(0), episodes, SHORT, Run(tmp_path))


def test_the_scale_of_the_body_is_that_of_the_episodes_it_learns_from(small, squares, tmp_path):
    model = small(0)
    train_world_model(model, squares, SHORT, Run(tmp_path))
    held_out = holdout_episodes(["demonstrations"] * 24, 0.1, SHORT.seed)
    learnt = np.concatenate([e.low_dim["x"] for i, e in enumerate(squares) if i not in held_out])
    assert model.body_mean.item() == pytest.approx(learnt.mean())
    everything = np.concatenate([e.low_dim["x"] for e in squares])
    assert model.body_mean.item() != pytest.approx(everything.mean())


# What a whole one learns.


@pytest.fixture(scope="module")
def trained(small, squares, tmp_path_factory) -> tuple[WorldModel, dict[str, float]]:
    config = WorldModelTrainingConfig(
        steps=160,
        lengths=((0.5, 2), (1.0, 8)),
        transitions=128,
        pictures=64,
        learning_rate=1e-2,
        warmup=10,
        ema=0.9,
        validate_every=160,
        held_out=0.17,
        motion=MotionTrainingConfig(steps=150, batch_size=32),
        reading=ReadingTrainingConfig(steps=600),
    )
    model = small(0)
    return model, train_world_model(model, squares, config, Run(tmp_path_factory.mktemp("run")))


def test_it_learns_to_move_a_square_as_it_is_told(trained):
    own, first, other = (
        np.mean([trained[1][f"{name}/{step}"] for step in STEPS])
        for name in ("psnr", "psnr_first", "psnr_other")
    )
    # Of 256 pixels the fallen square has 64 where the first had none, and the other way round.
    assert first == pytest.approx(-10 * math.log10(128 / 256), abs=0.01)
    assert own > first + 10
    assert own > other + 4


def places(model: WorldModel, latents: torch.Tensor) -> torch.Tensor:
    """The x that latents (n, t, f) hold, in pixels, (n, t)."""
    body = model.unflatten(latents.flatten(0, 1)).body * model.body_std + model.body_mean
    return body[:, 0].unflatten(0, latents.shape[:2])


@pytest.fixture(scope="module")
def new() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First pictures, actions and places of episodes that nobody has seen before."""
    episodes = [square(seed) for seed in range(100, 116)]
    first, actions, x = (
        torch.from_numpy(np.stack(arrays))
        for arrays in zip(
            *[(e.frames[0], e.actions, e.low_dim["x"]) for e in episodes], strict=True
        )
    )
    return first, actions, x[:, :, 0]


def test_it_learns_to_read_where_a_square_is(trained, new):
    model, (first, _, x) = trained[0], new
    read = places(model, model.encode(first[:, None]))
    assert (read[:, 0] - x[:, 0]).abs().max() < 2  # 4 pixels are between its places


def test_the_body_follows_its_own_actions(trained, new):
    model, (first, actions, x) = trained[0], new
    own, other = (
        places(model, replay_latents(model, first, played))
        for played in (actions, actions.roll(1, dims=0))
    )
    missed, missed_other, missed_still = (
        (at - x[:, 1:]).abs().mean() for at in (own, other, x[:, :1].expand_as(own))
    )
    assert missed < missed_still / 2
    assert missed < missed_other / 2

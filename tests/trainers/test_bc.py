"""Behaviour cloning: what is cloned, that it is learnt, that it resumes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies.token import TokenVLA, TokenVLAConfig
from trainers import bc
from trainers.bc import BCConfig, Chunks
from wm_gym.runs import Run

SMALL = TokenVLAConfig(image_size=16, chunk=2, stem_width=8, width=16, depth=2, heads=2)
CONFIG = BCConfig(
    steps=12,
    batch_size=16,
    learning_rate=3e-3,
    warmup=2,
    shift=1,
    validate_every=4,
    held_out=0.25,
    dtype="float32",
)


def episode(length: int, success_at: int | None) -> SimpleNamespace:
    """Frame t is a picture of t, action t is t / 10 everywhere."""
    success = np.zeros(length, bool)
    if success_at is not None:
        success[success_at:] = True
    t = np.arange(length + 1)
    return SimpleNamespace(
        frames=np.broadcast_to(t[:, None, None, None], (length + 1, 16, 16, 3)).astype(np.uint8),
        actions=np.repeat(t[:-1, None] / 10, 7, 1).astype(np.float32),
        success=success,
    )


def bright_or_dark(m: int = 64) -> Chunks:
    """Bright pictures ask for +0.5, dark ones for -0.5."""
    rng = np.random.default_rng(0)
    bright = rng.random(m) < 0.5
    frames = np.where(bright[:, None, None, None], 200, 30) + rng.integers(20, size=(m, 16, 16, 3))
    actions = np.broadcast_to(np.where(bright, 0.5, -0.5)[:, None, None], (m, 2, 7))
    episode = np.arange(m) // 4
    mask = np.ones((m, 2), bool)
    return Chunks(frames.astype(np.uint8), actions.astype(np.float32), mask, episode, ["go"] * m)


def policy(seed: int = 0) -> TokenVLA:
    torch.manual_seed(seed)
    return TokenVLA(SMALL)


def test_moments_end_with_the_first_success():
    chunks = bc.chunks_from([episode(5, success_at=2)], "lift", chunk=2)
    assert chunks.frames[:, 0, 0, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(chunks.actions[:, :, 0], [[0, 0.1], [0.1, 0.2], [0.2, 0.3]])
    assert chunks.instructions == ["lift"] * 3


def test_past_the_end_the_last_action_repeats_masked():
    chunks = bc.chunks_from([episode(2, success_at=1)], "lift", chunk=3)
    np.testing.assert_allclose(chunks.actions[:, :, 0], [[0, 0.1, 0.1], [0.1, 0.1, 0.1]])
    assert chunks.mask.tolist() == [[True, True, False], [True, False, False]]


def test_failures_are_left_out():
    chunks = bc.chunks_from([episode(3, None), episode(2, 1)], "lift", chunk=1)
    assert chunks.episode.tolist() == [1, 1]


def test_nothing_to_clone_is_an_error():
    with pytest.raises(ValueError, match="at least one success"):
        bc.chunks_from([episode(3, None)], "lift", chunk=1)


def test_episodes_are_held_out_whole():
    fit, held = bc.split(bright_or_dark(), share=0.25, seed=0)
    assert len(np.unique(held.episode)) == 4 and len(held.frames) == 16
    assert not set(fit.episode) & set(held.episode)
    assert len(fit.instructions) == 48


def test_shift_by_hand():
    image = torch.arange(3).view(1, 3, 1, 1).expand(1, 3, 3, 3).to(torch.uint8)  # row r shows r
    down = bc.shifted(image, torch.tensor([[1, 0]]))
    assert down[0, :, 0, 0].tolist() == [0, 0, 1]
    assert torch.equal(bc.shifted(image, torch.tensor([[0, 1]])), image)


def test_shift_moves_each_picture_by_its_own():
    image = torch.arange(3).view(1, 1, 3, 1).expand(2, 3, 3, 3).to(torch.uint8)  # column c shows c
    moved = bc.shifted(image, torch.tensor([[0, 2], [0, -1]]))
    assert moved[:, 0, :, 0].tolist() == [[0, 0, 0], [1, 2, 2]]


def test_learning_rate_by_hand():
    config = BCConfig(steps=102, warmup=2, learning_rate=1.0)
    rates = [bc.learning_rate(config, step) for step in (0, 1, 2, 52, 102)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


def test_masked_steps_do_not_count():
    chunks = bright_or_dark(8)
    other = chunks._replace(actions=chunks.actions.copy(), mask=chunks.mask.copy())
    other.actions[:, 1], other.mask[:, 1] = -1.0, False
    chunks.mask[:, 1] = False
    rows = np.arange(8)
    losses = [bc.clone_loss(policy(), c, rows, CONFIG).item() for c in (chunks, other)]
    assert losses[0] == losses[1]


def test_it_learns_what_it_is_shown(tmp_path):
    chunks = bright_or_dark()
    config = replace(CONFIG, steps=120, validate_every=60, ema=0.9)
    learnt = bc.train(config, policy(), chunks, Run(tmp_path), progress=False)
    act = learnt.act({"image": chunks.frames}, chunks.instructions, greedy=True)
    assert np.abs(act.action.numpy() - chunks.actions).mean() < 0.05


def test_the_best_score_is_kept(tmp_path):
    scores, seen = iter([0.1, 0.9, 0.5]), []

    def validate(candidate: TokenVLA) -> float:
        seen.append({k: v.clone() for k, v in candidate.state_dict().items()})
        return next(scores)

    learnt = bc.train(CONFIG, policy(), bright_or_dark(), Run(tmp_path), validate, progress=False)
    for name, value in learnt.state_dict().items():
        assert torch.equal(value, seen[1][name])


def test_patience_stops_early(tmp_path):
    run = Run(tmp_path)
    config = replace(CONFIG, patience=1)
    bc.train(config, policy(), bright_or_dark(), run, lambda _: 0.0, progress=False)
    assert [record["step"] for record in run.metrics()] == [4, 8]


def test_resumed_it_continues_bit_for_bit(tmp_path):
    whole = bc.train(CONFIG, policy(), bright_or_dark(), Run(tmp_path / "a"), progress=False)
    calls = []

    def interrupted(candidate: TokenVLA) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return -bc.held_out_loss(candidate, held, CONFIG)

    _, held = bc.split(bright_or_dark(), CONFIG.held_out, CONFIG.seed)
    with pytest.raises(KeyboardInterrupt):
        run = Run(tmp_path / "b")
        bc.train(CONFIG, policy(), bright_or_dark(), run, interrupted, progress=False)
    run = Run(tmp_path / "b", resume=True)
    again = bc.train(CONFIG, policy(seed=9), bright_or_dark(), run, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert [record["step"] for record in run.metrics()] == [4, 8, 12]


def test_resumed_without_a_score_it_ends_with_the_last_weights(tmp_path, monkeypatch):
    """Nothing held out and nobody to play: there is no best."""
    config, chunks = replace(CONFIG, held_out=0.0), bright_or_dark()
    whole = bc.train(config, policy(), chunks, Run(tmp_path / "a"), progress=False)
    run, log = Run(tmp_path / "b"), Run.log

    def interrupted(self: Run, step: int, metrics: dict) -> None:
        if step == 8:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(Run, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bc.train(config, policy(), chunks, run, progress=False)
    monkeypatch.setattr(Run, "log", log)
    run = Run(tmp_path / "b", resume=True)
    again = bc.train(config, policy(seed=9), chunks, run, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])

"""The success classifier: windows, their padding, and the verdict rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wm_gym.success.classifier import SuccessClassifier, SuccessConfig, held, pad_features
from wm_gym.world_model.presets import WorldModelConfig

TINY = SuccessConfig(channels=8, side=4, vector=6, width=8, features=5)


@pytest.fixture
def classifier() -> SuccessClassifier:
    """Its verdicts differ enough to be told apart: new ones are all near 1/2."""
    classifier = SuccessClassifier(TINY).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weights in classifier.parameters():
        torch.nn.init.normal_(weights, std=0.3, generator=generator)
    return classifier


def latents(n: int = 2, t: int = 12) -> Tensor:
    """A grid of 8 x 4 x 4 numbers, then 6 others."""
    return torch.randn(n, t, 134, generator=torch.Generator().manual_seed(1))


def hits(text: str) -> Tensor:
    return torch.tensor([c == "1" for c in text])


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (1, 1, "0110100011"),
        (2, 2, "0010000001"),
        (2, 3, "0011100001"),  # 3 and 4: two of the windows 1, 2, 3 and 2, 3, 4
        (3, 3, "0000000000"),
        (1, 3, "0111111011"),
    ],
)
def test_a_success_holds_where_k_of_the_last_n_windows_hit(k, n, expected):
    assert held(hits("0110100011"), k, n).tolist() == hits(expected).tolist()


def test_windows_before_the_first_count_as_misses():
    assert held(hits("11"), 2, 4).tolist() == [False, True]
    assert held(hits("1"), 2, 2).tolist() == [False]


def test_rows_are_judged_apart():
    rows = torch.stack([hits("1000"), hits("0011")])
    assert held(rows, 2, 2).tolist() == [[False] * 4, [False, False, False, True]]


def test_an_episode_is_padded_with_its_first_frame():
    features = torch.arange(6.0).view(1, 3, 2)
    padded = pad_features(features, window=4)
    assert padded[0].tolist() == [[0, 1]] * 3 + [[0, 1], [2, 3], [4, 5]]


def test_a_verdict_reads_the_frames_of_its_window_in_order(classifier):
    features = classifier.embed(latents())
    by_hand = [classifier.verdict(features[:, i : i + 8].mT.flatten(1))[:, 0] for i in range(5)]
    torch.testing.assert_close(classifier.logits(features), torch.stack(by_hand, 1))


def test_probability_is_the_logistic_of_the_log_odds(classifier):
    features = classifier.embed(latents())
    odds = classifier.logits(features).exp()
    torch.testing.assert_close(classifier.probability(features), odds / (1 + odds))


def test_watching_an_episode_equals_its_windows_one_frame_at_a_time(classifier):
    frames, seen = latents(), []
    recent = classifier.embed(frames[:, :1]).expand(-1, 8, -1)  # the first frame, at rest
    for t in range(frames.shape[1]):
        recent = torch.cat([recent[:, 1:], classifier.embed(frames[:, t : t + 1])], 1)
        seen.append(classifier.probability(recent)[:, 0])
    torch.testing.assert_close(classifier.watch(frames), torch.stack(seen, 1))
    assert classifier.watch(frames).std() > 0.1


@pytest.mark.parametrize("frame", [0, 4])
def test_a_frame_matters_from_its_own_step_to_the_end_of_its_window(classifier, frame):
    frames = latents(n=1, t=14)
    before = classifier.watch(frames)[0]
    frames[:, frame] *= -3
    differ = (classifier.watch(frames)[0] - before).abs() > 1e-6
    assert differ.nonzero().flatten().tolist() == list(range(frame, frame + 8))


def test_features_have_one_row_a_frame(classifier):
    assert classifier.embed(latents()).shape == (2, 12, 5)
    assert classifier.watch(latents()).shape == (2, 12)


@pytest.mark.parametrize("part", [slice(0, 1), slice(127, 128), slice(128, 129), slice(133, 134)])
def test_all_of_a_latent_is_embedded(classifier, part):
    before, changed = latents(), latents()
    changed[1, 3, part] += 1
    differ = (classifier.embed(before) != classifier.embed(changed)).any(2)
    assert differ.nonzero().tolist() == [[1, 3]]


def test_features_are_the_sum_of_those_of_the_grid_and_the_rest(classifier):
    whole = latents(n=1, t=1)
    grid, rest = whole[0, :, :128].view(1, 8, 4, 4), whole[0, :, 128:]
    steps = classifier.grid[1:]  # after the unflattening
    torch.testing.assert_close(classifier.embed(whole)[0], steps(grid) + classifier.vector(rest))


@pytest.mark.parametrize("channels", [4, 12, 16])
def test_latents_may_be_a_grid_alone_of_any_number_of_channels(channels):
    classifier = SuccessClassifier(replace(TINY, channels=channels, vector=0)).eval()
    grid = torch.randn(2, 12, channels * 16, generator=torch.Generator().manual_seed(0))
    expected = classifier.grid(grid.flatten(0, 1)).view(2, 12, 5)
    torch.testing.assert_close(classifier.embed(grid), expected)
    assert not any(name.startswith("vector") for name in classifier.state_dict())


@pytest.mark.parametrize("side", [1, 2, 4, 7, 8])
def test_grids_of_any_size_are_embedded(side):
    classifier = SuccessClassifier(SuccessConfig(channels=8, side=side, vector=3, features=5))
    assert classifier.embed(torch.zeros(1, 2, 8 * side**2 + 3)).shape == (1, 2, 5)


def test_the_defaults_read_the_latents_of_nano():
    assert SuccessConfig().latent_size == WorldModelConfig().latent_size


@pytest.mark.parametrize(
    "rule", [{"window": 1}, {"hold_k": 4, "hold_n": 3}, {"hold_k": 0}, {"hold_k": 0, "hold_n": 0}]
)
def test_a_rule_that_no_step_can_meet_or_that_looks_at_one_frame_is_refused(rule):
    with pytest.raises(ValueError, match="window of at least 2 and hold_k from 1 to hold_n, got"):
        SuccessConfig(**rule)
    assert SuccessConfig(window=2, hold_k=3, hold_n=3).hold_k == 3


def test_the_verdict_rule_is_saved_with_the_weights(tmp_path):
    rule = {"threshold": 0.35, "hold_k": 3, "hold_n": 5}
    classifier = SuccessClassifier(replace(TINY, **rule))
    classifier.eval().save_pretrained(tmp_path)
    loaded = SuccessClassifier.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in rule} == rule
    assert torch.equal(loaded.watch(latents()), classifier.watch(latents()))


def test_latents_without_a_grid_are_judged_by_the_rest():
    classifier = SuccessClassifier(replace(TINY, channels=0)).eval()
    latents = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    assert classifier.config.latent_size == 6
    torch.testing.assert_close(classifier.embed(latents), classifier.vector(latents))

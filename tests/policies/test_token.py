"""TokenVLA: shapes, exact probabilities, decoding of bins, saving."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from policies.base import Policy
from policies.token import TokenVLA, TokenVLAConfig, hash_words

SMALL = TokenVLAConfig(image_size=16, chunk=2, stem_width=8, width=16, depth=2, heads=2)


@pytest.fixture
def policy() -> TokenVLA:
    torch.manual_seed(0)
    policy = TokenVLA(SMALL)
    torch.nn.init.normal_(policy.head.weight, std=0.5)  # a head at rest knows no picture
    return policy.eval()


def see(n: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8)}


def test_it_is_a_policy(policy):
    assert isinstance(policy, Policy)


def test_events_belong_to_steps(policy):
    assert policy.event_steps.tolist() == [0] * 7 + [1] * 7


def test_act_gives_bin_centres_and_one_event_a_token(policy):
    act = policy.act(see(3), ["lift"] * 3)
    assert act.action.shape == (3, 2, 7) and act.action.dtype == torch.float32
    assert act.sample.shape == act.log_prob.shape == (3, 14)
    torch.testing.assert_close(policy.detokenize(act.sample), act.action)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("greedy", [False, True])
def test_log_prob_repeats_what_act_reported(policy, temperature, greedy):
    policy.temperature = temperature
    act = policy.act(see(4), ["lift"] * 4, greedy=greedy)
    assert torch.equal(policy.log_prob(see(4), ["lift"] * 4, act.sample), act.log_prob)


def test_a_temperature_that_was_set_is_saved_with_the_weights(policy, tmp_path):
    given = policy.config
    policy.temperature = 1.6
    policy.save_pretrained(tmp_path)
    assert TokenVLA.from_pretrained(tmp_path).temperature == 1.6
    assert given.temperature == 1.0  # a config that others hold is left alone


def test_log_prob_is_the_softmax_at_the_temperature(policy):
    policy.temperature = 2.0
    token = torch.full((1, 14), 3)
    logits = policy.logits(see(1), ["lift"])[0, 5]  # (bins,)
    expected = logits[3] / 2 - (logits / 2).exp().sum().log()
    torch.testing.assert_close(policy.log_prob(see(1), ["lift"], token)[0, 5], expected)


def test_greedy_takes_the_likeliest_token(policy):
    act = policy.act(see(2), ["lift"] * 2, greedy=True)
    assert torch.equal(act.sample, policy.logits(see(2), ["lift"] * 2).argmax(-1))


def test_sampling_follows_the_probabilities():
    policy = TokenVLA(TokenVLAConfig(image_size=8, chunk=1, stem_width=4, width=8, heads=1, bins=2))
    for layer in (policy.bell, policy.aim):  # a parabola around 0 favours neither of two bins
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    policy.head.bias.data = torch.tensor([0.0, math.log(3.0)] * 7)  # p = 1/4, 3/4
    image = np.zeros((1000, 8, 8, 3), np.uint8)
    sample = policy.act({"image": image}, ["x"] * 1000).sample
    assert abs(sample.float().mean() - 0.75) < 0.03  # 7000 draws: 6 standard errors


@pytest.mark.parametrize("total", [1 - 2e-7, 1 + 2e-7])
def test_rounding_draws_no_bin_that_has_no_probability(policy, monkeypatch, total):
    """Probabilities add up to a little less or more than 1 in float32, all of it in bin 3."""
    log_p = torch.full((1, 14, policy.config.bins), -torch.inf)
    log_p[..., 3] = math.log(total)
    monkeypatch.setattr(policy, "_log_softmax", lambda _: log_p)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.full((1, 14), 1 - 2.0**-24))
    assert policy.act(see(1), ["lift"]).sample.tolist() == [[3] * 14]


def test_logits_are_a_parabola_around_the_predicted_middle_by_hand():
    policy = TokenVLA(TokenVLAConfig(image_size=8, chunk=1, stem_width=4, width=8, heads=1, bins=4))
    torch.nn.init.zeros_(policy.bell.weight)
    torch.nn.init.zeros_(policy.aim.weight)
    policy.bell.bias.data = torch.tensor([0.0, 1.0 + math.log(math.e**0.48 - 1)] * 7)
    policy.aim.bias.data.fill_(0.25)  # width: 0.02 + softplus(log(e^0.48 - 1)) = 0.02 + 0.48
    image = np.zeros((1, 8, 8, 3), np.uint8)
    logits = policy.logits({"image": image}, ["x"])[0, 0]
    # bins at -0.75, -0.25, 0.25, 0.75: distances 2, 1, 0, 1 widths from 0.25
    torch.testing.assert_close(logits, torch.tensor([-2.0, -0.5, 0.0, -0.5]))


def test_the_generator_decides_the_sample(policy):
    draws = [
        policy.act(see(2), ["a"] * 2, generator=torch.Generator().manual_seed(s)).sample
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_bins_by_hand(policy):
    action = torch.tensor([-1.0, -0.9999, 0.0, 0.0079, 1.0, 0.5, -0.5]).repeat(1, 2, 1)
    token = policy.tokenize(action)
    assert token[0, :7].tolist() == [0, 0, 128, 129, 255, 192, 64]
    assert policy.detokenize(token)[0, 0, 2].item() == pytest.approx(0.5 / 128)


def test_every_bin_centre_comes_back(policy):
    token = torch.arange(252).view(18, 14)
    assert torch.equal(policy.tokenize(policy.detokenize(token)), token)


def test_picture_and_instruction_both_matter(policy):
    base = policy.logits(see(1), ["lift the cube"])
    other = {"image": 255 - see(1)["image"]}
    assert not torch.allclose(base, policy.logits(other, ["lift the cube"]))
    assert not torch.allclose(base, policy.logits(see(1), ["stack the cube"]))


def test_instructions_keep_their_rows(policy):
    image = {"image": np.repeat(see(1)["image"], 3, 0)}
    mixed = policy.logits(image, ["b", "a", "b"])
    torch.testing.assert_close(mixed[0], mixed[2])
    torch.testing.assert_close(mixed[1], policy.logits(see(1), ["a"])[0])


def test_any_text_is_an_instruction(policy):
    assert policy.logits(see(2), ["", "抬起 方块 🤖"]).isfinite().all()


def test_word_hashes_are_fixed():
    # crc32 of b"<s>", b"lift" and b"<s> lift", modulo 1024
    assert hash_words("Lift", 1024) == [632, 524, 804]


def test_tokens_of_a_new_policy_depend_on_the_picture():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (32, 16, 16, 3), dtype=torch.uint8)
    assert TokenVLA(SMALL).stem(image)[0].std(0).mean() > 0.1


def test_wrong_pictures_are_refused_with_the_expected_shape(policy):
    with pytest.raises(ValueError, match=r"uint8 \(2, 16, 16, 3\) and 2 instructions, got"):
        policy.act({"image": np.zeros((2, 32, 32, 3), np.uint8)}, ["a"] * 2)


def test_saved_and_loaded_it_decides_alike(policy, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    again = TokenVLA.from_pretrained(tmp_path / "policy")
    assert again.config == SMALL
    assert torch.equal(again.logits(see(2), ["a"] * 2), policy.logits(see(2), ["a"] * 2))


def test_nano_has_the_documented_size():
    count = sum(p.numel() for p in TokenVLA(TokenVLAConfig()).parameters())
    assert 1.5e6 < count < 2.5e6

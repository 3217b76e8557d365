"""Replays: dB and other figures by hand, the blocks, and a model that obeys its actions exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.fakes import SIZE, FakeWorldModel
from wm_gym.data import Episode
from wm_gym.evaluation.fidelity import (
    Replays,
    edge_map,
    known,
    long_enough,
    measure,
    moving,
    psnr,
    replay,
    replay_episodes,
    replay_latents,
    replay_report,
    spread,
    ssim_map,
    state_drift,
    steps_to_judge,
)
from wm_gym.noise import row_noise
from wm_gym.world_model.model import WorldModel, pixels
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.training import frame_loss


def flat(*levels: int) -> torch.Tensor:
    """Pictures (1, t, SIZE, SIZE, 3) that are one grey each."""
    return torch.tensor(levels, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(1, -1, SIZE, SIZE, 3)


def brighten(seed: int, t: int) -> Episode:
    """FakeWorldModel's own world: the first action value adds 12.75 grey levels times itself."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rng.uniform(0.1, 1.0, t) * np.where(np.arange(t) % 2, -1, 1)
    levels = 120 + 12.75 * np.concatenate([[0], actions[:, 0].cumsum()])
    frames = np.broadcast_to(levels.round()[:, None, None, None], (t + 1, SIZE, SIZE, 3))
    return Episode(frames.astype(np.uint8), actions, np.zeros(t, bool))


def grey(pictures: torch.Tensor) -> list:
    return pictures[..., 0, 0, 0].tolist()


def test_psnr_by_hand():
    # A difference of 51 = 255 / 5 everywhere: 20 log10(5) dB.
    found = psnr(flat(100, 0), flat(151, 255))
    assert found.dtype == torch.float32 and found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([20 * math.log10(5), 0.0], abs=1e-4)


def test_psnr_is_over_all_pixels_and_channels_of_a_picture():
    picture, reference = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, 3)
    picture[1, 0, 0, 0] = 255  # one of 48 values
    assert psnr(picture, reference)[1].item() == pytest.approx(10 * math.log10(48), abs=1e-4)


def test_psnr_of_equal_pictures_is_bounded():
    # The mean squared error counts as at least 0.01.
    assert psnr(flat(7), flat(7)).item() == pytest.approx(20 * math.log10(255) + 20, abs=1e-4)


def test_differences_do_not_wrap_around():
    assert psnr(flat(0), flat(255)).item() == psnr(flat(255), flat(0)).item() == pytest.approx(0)


@pytest.mark.parametrize(("chunk", "calls"), [(None, [8, 8, 4]), (5, [5, 5, 5, 5]), (1, [1] * 20)])
def test_a_replay_plays_the_recorded_actions_block_by_block(chunk, calls):
    model, played = FakeWorldModel(), []
    imagine = model.imagine

    def watched(memory, actions, noise):
        played.append(actions.shape[1])
        return imagine(memory, actions, noise)

    model.imagine = watched
    episode = brighten(0, 20)
    first, actions = torch.from_numpy(episode.frames[:1]), torch.from_numpy(episode.actions)[None]
    found = replay(model, first, actions, chunk=chunk)
    assert played == calls
    assert found.shape == (1, 20, SIZE, SIZE, 3) and found.dtype == torch.uint8
    assert (
        np.abs(np.subtract(grey(found[0]), grey(torch.from_numpy(episode.frames[1:])))).max() <= 1
    )


def test_a_replays_noise_follows_from_seed_row_and_step():
    model = FakeWorldModel(noise=0.05)
    first, actions = flat(120, 120)[0], torch.zeros(2, 10, 7)
    found = replay(model, first, actions, chunk=8, seed=5)
    rows, none = np.array([5, 6]), np.zeros(2, np.int64)
    noise = torch.cat(
        [
            row_noise(rows, none, none, (8, 3, SIZE, SIZE)),
            row_noise(rows, none, none + 8, (2, 3, SIZE, SIZE)),
        ],
        dim=1,
    )
    levels = 120 / 127.5 - 1 + 0.05 * noise.cumsum(1)
    expected = ((levels + 1) * 127.5).round().clamp(0, 255).movedim(2, -1)
    assert (found.float() - expected).abs().max() <= 1
    assert torch.equal(found, replay(model, first, actions, chunk=8, seed=5))
    assert not torch.equal(found, replay(model, first, actions, chunk=8, seed=6))


def test_the_pictures_of_a_replay_are_those_of_its_latents():
    model = FakeWorldModel(noise=0.05)
    first, actions = flat(120, 130)[0], torch.zeros(2, 19, 7)  # not in one piece of 8
    latents = replay_latents(model, first, actions, chunk=8, seed=5)
    assert latents.shape == (2, 19, 3, SIZE, SIZE)
    pictures = replay(model, first, actions, chunk=8, seed=5)
    assert torch.equal(pictures, model.decode(latents))


def test_a_replay_begins_with_what_the_robot_measured(model_of_x):
    """x is told where the model asks for it, and else read from the picture."""
    episodes = [
        replace(brighten(s, 4), low_dim={"x": np.full((5, 1), 3.0 + s, "f4")}) for s in (0, 1)
    ]
    assert known(model_of_x, episodes) is None
    model_of_x.config = replace(model_of_x.config, robot=("x",))
    robot = known(model_of_x, episodes)
    assert robot.tolist() == [[3.0], [4.0]]
    begun, roll = [], model_of_x.roll
    model_of_x.roll = lambda state, *rest: begun.append(state.body[:, 0]) or roll(state, *rest)
    first = torch.from_numpy(np.stack([e.frames[0] for e in episodes]))
    actions = torch.from_numpy(np.stack([e.actions for e in episodes]))
    replay_latents(model_of_x, first, actions, robot=robot)
    replay_report(model_of_x, episodes, steps=(1,))
    replay_latents(model_of_x, first, actions)
    for state in (begun[0], begun[1]):
        assert state.tolist() == pytest.approx([(3 - 1) / 4, (4 - 1) / 4])
    assert begun[-1].tolist() != pytest.approx([0.5, 0.75])


@pytest.fixture
def model_of_x() -> WorldModel:
    shape = {"outer": 8, "width": 8, "vector": 16, "draw": (8, 8, 8), "embed": 16}
    model = WorldModel(WorldModelConfig(SIZE, body=("x",), body_size=1, noise=0.0, **shape))
    model.body_mean.fill_(1.0), model.body_std.fill_(4.0)
    return model.requires_grad_(False)


def test_a_report_has_three_figures_a_step():
    report = replay_report(FakeWorldModel(), [brighten(s, 16) for s in range(3)], steps=(1, 8, 16))
    names = ("psnr", "psnr_other", "psnr_first")
    assert list(report) == [f"{name}/{step}" for name in names for step in (1, 8, 16)]
    assert all(isinstance(value, float) for value in report.values())


def test_a_model_that_obeys_its_actions_is_right_under_them_and_wrong_under_others():
    report = replay_report(FakeWorldModel(), [brighten(s, 16) for s in range(3)], steps=(5, 16))
    for step in (5, 16):
        assert report[f"psnr/{step}"] > 45  # rounding alone
        assert report[f"psnr_other/{step}"] < report[f"psnr/{step}"] - 10


def test_the_first_frame_held_still_is_compared_at_each_step_by_hand():
    # Levels 120 -> 133 -> 146 and 120 -> 107 -> 94: errors of 13 at step 1 and of 26 at step 2.
    episodes = []
    for sign in (1, -1):
        frames = flat(120, 120 + 13 * sign, 120 + 26 * sign)[0].numpy().copy()
        episodes.append(Episode(frames, np.full((2, 7), sign, np.float32), np.zeros(2, bool)))
    report = replay_report(FakeWorldModel(), episodes, steps=(1, 2))
    assert report["psnr_first/1"] == round(20 * math.log10(255 / 13), 2)
    assert report["psnr_first/2"] == round(20 * math.log10(255 / 26), 2)
    # Under the other's actions it goes the wrong way: errors of 26 and 52, to a rounding.
    assert report["psnr_other/2"] == pytest.approx(20 * math.log10(255 / 52), abs=0.2)


def test_only_episodes_that_are_long_enough_are_judged():
    episodes = [brighten(0, 8), brighten(1, 16), brighten(2, 15), brighten(3, 20)]
    assert [len(e) for e in long_enough(episodes, 16)] == [16, 20]
    kept = [episodes[1], episodes[3]]
    assert replay_report(FakeWorldModel(), episodes, steps=(16,)) == replay_report(
        FakeWorldModel(), kept, steps=(16,)
    )


def test_replays_are_judged_at_the_steps_that_two_episodes_have():
    """Of 1, 8, 16, 32 and 48."""
    assert steps_to_judge([brighten(0, 15), brighten(1, 16), brighten(2, 40)]) == (1, 8, 16)
    assert steps_to_judge([brighten(0, 7), brighten(1, 60)]) == (1,)


def test_a_single_episode_is_refused():
    with pytest.raises(ValueError, match="takes 2; got 1. Pass more episodes, at least 3"):
        steps_to_judge([brighten(0, 16)])
    with pytest.raises(ValueError, match="2 episodes of at least 16 steps, got 1 of 2"):
        replay_report(FakeWorldModel(), [brighten(0, 16), brighten(1, 15)], steps=(8, 16))


# Figures of a picture.


def noisy(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pictures (*shape, 3) of uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)


def test_psnr_in_a_region_counts_its_pixels_alone():
    picture, reference = (torch.zeros(1, 4, 4, 3, dtype=torch.uint8) for _ in range(2))
    picture[0, 0, 0] = 51  # one of the region's two pixels
    picture[0, 3] = 255  # outside
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 0, :2] = True
    expected = 10 * math.log10(255**2 / (51**2 / 2))
    assert psnr(picture, reference, region).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(picture, reference, torch.zeros_like(region)).isnan().all()


@pytest.mark.parametrize(("levels", "size"), [(19, 0), (20, 15), (-20, 15)])
def test_what_moves_differs_by_more_than_19_levels_within_2_pixels(levels, size):
    first = torch.full((1, 9, 9, 3), 100, dtype=torch.uint8)
    picture = first.clone()
    picture[0, 4, 0, 1] += levels  # at the left edge: 5 rows of 3 pixels
    region = moving(picture, first)
    assert region.shape == (1, 9, 9) and region.sum() == size
    assert region[0, 2:7, :3].sum() == size


def test_what_moves_is_what_the_world_models_loss_calls_changed():
    first, drawn = noisy(6, 16, 16), noisy(6, 16, 16, seed=1)
    clean = first.clone()
    clean[:, 3:6, 9] = noisy(6, 3, seed=2)
    weight = 1 + 7 * moving(clean, first).float()[:, None]
    assert 0 < weight.mean() - 1 < 3.5
    clean, drawn, first = pixels(clean), pixels(drawn), pixels(first)
    expected = ((drawn - clean).square() * weight).sum() / (3 * weight.sum())
    loss = frame_loss(drawn, clean, first, torch.ones(6, dtype=torch.bool), 7.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_energy_by_hand():
    picture = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    picture[0, 1, 1, 2] = 30  # 30^2 in one colour of three, to its left and right, above and below
    assert edge_map(picture)[0].tolist() == [[0, 300, 0], [300, 600, 0], [0, 0, 0]]


def test_structural_similarity_of_a_window_by_its_formula():
    a, b = noisy(1, 11, 11), noisy(1, 11, 11, seed=1)
    b = (a // 2 + b // 2).to(torch.uint8)
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(bell, bell)[..., None] / bell.sum() ** 2
    x, y = (part[0].double().numpy() for part in (a, b))
    mx, my = ((weight * z).sum((0, 1)) for z in (x, y))
    vx, vy = ((weight * (z - m) ** 2).sum((0, 1)) for z, m in ((x, mx), (y, my)))
    both = (weight * (x - mx) * (y - my)).sum((0, 1))
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    found = ssim_map(a, b)
    assert found.shape == (1, 11, 11)
    assert found[0, 5, 5].item() == pytest.approx(expected.mean(), abs=1e-4)
    assert ssim_map(a, a).min().item() == pytest.approx(1, abs=1e-4)


# Figures of replays.


def steps_of(real: tuple[int, ...], imagined: tuple[int, ...], other: tuple[int, ...]) -> Replays:
    """One episode in pictures of one grey each."""
    return Replays(flat(*real), flat(*imagined), flat(*other))


def db(error: int) -> float:
    return 20 * math.log10(255 / error)


def test_every_picture_is_compared_with_its_baselines_by_hand():
    figures = measure(steps_of((100, 110, 150), (105, 140), (108, 90)))
    expected = {
        "psnr": [db(5), db(10)],
        "psnr_other": [db(2), db(60)],
        "psnr_persistence": [db(10), db(50)],
        "psnr_previous": [db(10), db(40)],
        "controllability": [db(5) - db(2), db(10) - db(60)],
        "skill_persistence": [db(5) - db(10), db(10) - db(50)],
        "skill_previous": [db(5) - db(10), db(10) - db(40)],
    }
    for name, values in expected.items():
        assert figures[f"whole/{name}"].shape == (1, 2)
        assert figures[f"whole/{name}"][0].tolist() == pytest.approx(values, abs=1e-4), name
        # Step 1 is within 19 levels of the first picture; at step 2 every pixel has changed.
        at_1, at_2 = figures[f"moving/{name}"][0].tolist()
        assert math.isnan(at_1) and at_2 == pytest.approx(values[1], abs=1e-4), name
    assert figures["moving/share"][0].tolist() == [0, 1]


def test_only_what_moves_counts_in_the_moving_region():
    first = torch.zeros(16, 16, 3, dtype=torch.uint8)
    real, imagined = first.clone(), first.clone()
    real[8:, 8:] = 200  # 8 x 8 pixels, and 2 more on two sides
    imagined[8:, 8:] = 190
    imagined[0, 0] = 255  # elsewhere
    replays = Replays(torch.stack([first, real])[None], imagined[None, None], imagined[None, None])
    figures = {name: values.item() for name, values in measure(replays).items()}
    assert figures["moving/share"] == pytest.approx(100 / 256)
    assert figures["moving/psnr"] == pytest.approx(10 * math.log10(255**2 / 64), abs=1e-4)
    whole = (64 * 10**2 + 255**2) / 256
    assert figures["whole/psnr"] == pytest.approx(10 * math.log10(255**2 / whole), abs=1e-4)
    # 16 steps of 200 or 190 on the two edges of the square; those of the corner are elsewhere.
    assert figures["moving/sharpness"] == pytest.approx((190 / 200) ** 2)
    assert figures["whole/sharpness"] == pytest.approx(
        (16 * 190**2 + 2 * 255**2) / (16 * 200**2), rel=1e-5
    )
    similar = ssim_map(imagined[None], real[None])[0]
    assert figures["whole/ssim"] == pytest.approx(similar.mean().item())
    assert figures["moving/ssim"] == pytest.approx(similar[6:, 6:].mean().item())


def test_a_flat_picture_has_no_sharpness():
    assert measure(steps_of((0, 60), (50,), (50,)))["whole/sharpness"].isnan().all()


def test_episodes_are_replayed_under_their_own_and_under_anothers_actions():
    episodes = [brighten(s, t) for s, t in enumerate((12, 10, 15))]
    replays = replay_episodes(FakeWorldModel(), episodes, 10)
    assert [part.shape[:2] for part in replays] == [(3, 11), (3, 10), (3, 10)]
    frames = torch.from_numpy(np.stack([e.frames[:11] for e in episodes]))
    assert torch.equal(replays.real, frames)
    assert (replays.imagined.int() - frames[:, 1:].int()).abs().max() <= 1
    # All begin at level 120, so under another's actions its own pictures would come.
    before = frames[[2, 0, 1], 1:].int()
    assert (replays.other.int() - before).abs().max() <= 1


def test_an_episodes_replay_does_not_depend_on_the_batches():
    episodes, model = [brighten(s, 10) for s in range(5)], FakeWorldModel(noise=0.05)
    together, apart = (replay_episodes(model, episodes, 10, batch_size=b) for b in (5, 2))
    assert torch.equal(together.imagined, apart.imagined)
    assert torch.equal(together.other, apart.other)
    assert not torch.equal(together.imagined[0, 0], together.imagined[1, 0])


class Brightness(nn.Module):
    """A probe that reads a grey level as so many millimetres along x, of gripper and object."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(6))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(pictures), 2, 3)
        found[..., 0] = pictures[:, 0, 0, :1].float() / 1000
        return found


def test_drift_is_how_far_what_is_shown_is_from_the_truth():
    def episode(gripper: list[int], **other: np.ndarray) -> Episode:
        hand = np.zeros((4, 3), np.float32)
        hand[:, 0] = np.array(gripper) / 1000
        thing = np.zeros((4, 14), np.float32)
        thing[:, 1] = 0.003
        low_dim = {"robot0_eef_pos": hand, "object": thing} | other
        frames = np.zeros((4, SIZE, SIZE, 3), np.uint8)
        return Episode(frames, np.zeros((3, 7), np.float32), np.zeros(3, bool), low_dim=low_dim)

    blind = episode([0] * 4, object=np.zeros((4, 2), np.float32))  # no position in it
    episodes = [blind, episode([9, 4, 6, 9])]
    real, imagined = flat(9, 4, 4, 4), flat(4, 14)
    replays = Replays(
        torch.cat([real, real])[:, :3], torch.cat([imagined + 7, imagined]), torch.empty(0)
    )
    found = state_drift(replays, episodes, Brightness())
    assert {name: values.shape for name, values in found.items()} == {
        f"{thing}/{pictures}": (1, 2)
        for thing in ("gripper", "object")
        for pictures in ("imagined", "real")
    }
    assert found["gripper/imagined"][0].tolist() == pytest.approx([0, 8], abs=1e-3)
    assert found["gripper/real"][0].tolist() == pytest.approx([0, 2], abs=1e-3)
    assert found["object/imagined"][0].tolist() == pytest.approx([5, 205**0.5], abs=1e-3)
    assert found["object/real"][0].tolist() == pytest.approx([5, 5], abs=1e-3)


def test_a_spread_leaves_out_what_could_not_be_measured():
    none = torch.nan
    values = torch.tensor([[1.0, none, 3.0], [2.0, none, none], [4.0, none, 1.0]])
    assert spread(values) == {
        "n": [3, 0, 2],
        "mean": [2.3333, None, 2.0],
        "q10": [1.2, None, 1.2],
        "q50": [2.0, None, 2.0],
        "q90": [3.6, None, 2.8],
    }

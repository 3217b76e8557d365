"""Training on episodes of any origin: which files, what is new, what goes on, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from trainers import own, wmpo
from trainers.own import EpisodesConfig, TrainWorldModelConfig, files
from trainers.settings import WMPOConfig
from wm_gym.data import Episode, EpisodeWriter
from wm_gym.runs import Run
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.success.training import SuccessTrainingConfig
from wm_gym.world_model.autoencoder import AutoencoderTrainingConfig
from wm_gym.world_model.loading import load_world_model
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.motion import MotionTrainingConfig
from wm_gym.world_model.presets import PRESETS
from wm_gym.world_model.presets import WorldModelConfig as Shape
from wm_gym.world_model.reading import ReadingTrainingConfig
from wm_gym.world_model.sizes import SIZES
from wm_gym.world_model.training import WorldModelTrainingConfig
from wm_gym.world_model.transformer import VideoTransformer, VideoTransformerConfig
from wm_gym.world_model.video_training import VideoTrainingConfig

QUICK = WorldModelTrainingConfig(
    steps=1,
    lengths=((1.0, 2),),
    transitions=4,
    pictures=2,
    held_out=0.4,
    motion=MotionTrainingConfig(steps=1, unroll=2),
    reading=ReadingTrainingConfig(steps=1, batch_size=2),
)


VIDEO = VideoTransformerConfig(
    image_size=16,
    max_chunk=4,
    depth=1,
    width=16,
    heads=2,
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
)
QUICK_VIDEO = VideoTrainingConfig(
    steps=2,
    batch_size=4,
    held_out=0.4,
    least_psnr=0.0,
    autoencoder=AutoencoderTrainingConfig(steps=1, batch_size=4),
)


def record(path: Path, levels: tuple[int, ...]) -> Path:
    """Write an episode of 3 steps for each level of grey, which is also what is measured."""
    path.parent.mkdir(exist_ok=True)
    with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
        for level in levels:
            frames = np.full((4, 16, 16, 3), level, np.uint8)
            x = {"x": np.arange(4, dtype=np.float32)[:, None] + level}
            done = np.array([False, False, True])
            writer.append(Episode(frames, np.zeros((3, 7), np.float32), done, low_dim=x))
    return path


@pytest.fixture
def config(tmp_path, monkeypatch) -> WMPOConfig:
    sizes = {"outer": 8, "width": 8, "vector": 8, "draw": (8, 8, 8), "embed": 8}
    shape = Shape(image_size=16, max_chunk=4, **sizes, body=("x",), body_size=1)
    monkeypatch.setitem(PRESETS, "tiny", shape)
    monkeypatch.setitem(SIZES, "tiny", shape)
    monkeypatch.setitem(SIZES, "tiny-video", VIDEO)
    return WMPOConfig(preset="tiny", out=tmp_path / "run", world_model=QUICK)


@pytest.fixture
def fits(monkeypatch) -> list[tuple]:
    """Note what is to be fitted, and fit nothing: (levels of the episodes, init)."""
    made = []

    def fit(config, run, everything, unfilmed=(), init=None):
        made.append(([int(e.frames[0, 0, 0, 0]) for e in everything], init))
        return {"fit": len(made)}

    monkeypatch.setattr(wmpo, "fit_world_model", fit)
    monkeypatch.setattr(wmpo, "fit_success", fit)
    monkeypatch.setattr(own, "fit_video_transformer", fit)
    return made


def test_folders_stand_for_the_files_in_them(tmp_path):
    for name in ("b/two.hdf5", "b/one.hdf5", "b/in/three.hdf5", "b/notes.txt", "c.hdf5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files([tmp_path / "c.hdf5", tmp_path / "b"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["c.hdf5", "b/in/three.hdf5", "b/one.hdf5", "b/two.hdf5"]
    assert files([tmp_path / "b", tmp_path / "b/one.hdf5", tmp_path / "b/../c.hdf5"]) == [
        *found[1:],
        tmp_path / "b/../c.hdf5",
    ]  # none twice: one of the two would be held out of training, and its copy be trained on


def test_what_was_left_half_written_is_no_file_of_a_folder(tmp_path):
    for name in ("a.hdf5", "partial.b.hdf5"):
        (tmp_path / name).touch()
    assert files([tmp_path]) == [tmp_path / "a.hdf5"]
    (tmp_path / "b.hdf5.parts").mkdir()
    with pytest.raises(ValueError, match=r"b\.hdf5\.parts is a recording that was interrupted"):
        files([tmp_path])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((3, 8), np.float32), "Episode 1 of 'x' has 8 numbers an action; expected 7"),
        (np.full((3, 7), -1.5, np.float32), "has an action of 1.5; expected numbers in"),
        (np.full((3, 7), np.nan, np.float32), "has an action of nan"),
    ],
)
def test_actions_that_no_policy_plays_are_refused(actions, message):
    good, bad = (
        Episode(np.zeros((4, 1, 1, 3), np.uint8), a, np.zeros(3, bool), source="x")
        for a in (np.ones((3, 7), np.float32), actions)
    )
    own.check_played([good], 7)
    with pytest.raises(ValueError, match=message):
        own.check_played([good, bad], 7)


def test_a_folder_without_episodes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no file named \*.hdf5"):
        files([tmp_path])


@pytest.mark.parametrize(
    ("command", "made"),
    [(own.train_world_model, TrainWorldModelConfig), (own.train_success, EpisodesConfig)],
)
def test_the_episodes_named_are_trained_on_once(tmp_path, config, fits, capsys, command, made):
    paths = (record(tmp_path / "data" / "a.hdf5", (1, 2)), record(tmp_path / "b.hdf5", (3,)))
    (config.out / "world_model").mkdir(parents=True)  # that a classifier would read
    for _ in range(2):
        command(made(episodes=(tmp_path / "data", paths[1]), run=config))
    assert fits == [([1, 2, 3], None)]
    assert capsys.readouterr().out.count("'fit': 1") == 2


def test_a_classifier_without_a_world_model_is_refused(tmp_path, config, fits):
    path = record(tmp_path / "a.hdf5", (1,))
    with pytest.raises(ValueError, match="holds no world_model.*train-world-model ... --out"):
        own.train_success(EpisodesConfig(episodes=(path,), run=config))
    assert not fits and not config.out.exists()


def test_bad_episodes_are_refused_without_a_trace_and_left_out_when_asked(tmp_path, config, fits):
    path = record(tmp_path / "a.hdf5", (1, 2))
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["num_samples"] = 9
    with pytest.raises(ValueError, match=r"1 bad episode.* \(commands: --skip-bad\)"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    assert not config.out.exists()
    with pytest.warns(UserWarning, match="left out demo_0"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config, skip_bad=True))
    assert fits == [([2], None)]


def test_a_file_that_is_cut_short_is_left_out_when_asked(tmp_path, config, fits):
    good, cut = record(tmp_path / "a.hdf5", (1, 2)), tmp_path / "b.hdf5"
    cut.write_bytes(good.read_bytes()[:100])
    with pytest.raises(OSError, match=r"b\.hdf5 is not a whole HDF5 file.*--skip-bad"):
        own.train_world_model(TrainWorldModelConfig(episodes=(good, cut), run=config))
    with pytest.warns(UserWarning, match=r"Left out .*b\.hdf5 is not a whole HDF5 file"):
        own.train_world_model(
            TrainWorldModelConfig(episodes=(good, cut), run=config, skip_bad=True)
        )
    assert fits == [([1, 2], None)]


def test_files_without_pictures_teach_motion_alone(tmp_path, config, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(wmpo, "fit_world_model", lambda *given: found.extend(given[2:4]) or {})
    seen, unseen = record(tmp_path / "a.hdf5", (1, 2)), tmp_path / "b.hdf5"
    with EpisodeWriter(unseen, {"env_name": "Lift"}) as writer:
        x = {"x": np.full((4, 1), 5, np.float32)}
        nothing = np.zeros((4, 0, 0, 3), np.uint8)
        writer.append(Episode(nothing, np.zeros((3, 7), np.float32), np.zeros(3, bool), low_dim=x))
    own.train_world_model(TrainWorldModelConfig((seen, unseen), config))
    filmed, unfilmed = found
    assert [e.frames.shape[1] for e in filmed] == [16, 16]
    assert [e.low_dim["x"][0, 0] for e in unfilmed] == [5]
    assert f"No pictures in {unseen}: only motion" in capsys.readouterr().out

    with pytest.raises(ValueError, match="No obs/agentview_image in .*b.hdf5. Name files"):
        own.train_world_model(TrainWorldModelConfig((unseen,), replace(config, out=tmp_path / "c")))


def test_the_same_files_may_be_named_by_another_path_and_grown_ones_are_others(
    tmp_path, config, fits, monkeypatch, capsys
):
    path = record(tmp_path / "a.hdf5", (1,))
    own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    monkeypatch.chdir(tmp_path)
    own.train_world_model(TrainWorldModelConfig(episodes=(Path("a.hdf5"),), run=config))
    assert len(fits) == 1 and "done before, on these files; nothing" in capsys.readouterr().out
    record(path, (2,))
    with pytest.raises(ValueError, match=r"\['a.hdf5', 1, 3\]\] there, \[\['a.hdf5', 2, 6\]\] now"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))


def test_a_file_without_episodes_is_refused(tmp_path, config, fits):
    good, empty = record(tmp_path / "a.hdf5", (1,)), tmp_path / "b.hdf5"
    EpisodeWriter(empty, {}).close()
    with pytest.raises(ValueError, match=r"b\.hdf5 holds no episodes; leave it out"):
        own.train_world_model(TrainWorldModelConfig(episodes=(good, empty), run=config))
    skipping = TrainWorldModelConfig(episodes=(good, empty), run=config, skip_bad=True)
    own.train_world_model(skipping)
    assert fits == [([1], None)]


def test_pictures_may_be_called_otherwise(tmp_path, config, fits):
    path = record(tmp_path / "a.hdf5", (1,))
    with h5py.File(path, "a") as file:
        for part in ("obs", "wm_final"):
            file.move(f"data/demo_0/{part}/agentview_image", f"data/demo_0/{part}/front_image")
    with pytest.raises(ValueError, match="No obs/agentview_image in .* --image-key"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    named = TrainWorldModelConfig(episodes=(path,), run=config, image_key="front_image")
    own.train_world_model(named)
    assert fits == [([1], None)]


def test_other_episodes_need_another_folder(tmp_path, config, fits):
    first, second = (record(tmp_path / name, (1,)) for name in ("a.hdf5", "b.hdf5"))
    own.train_world_model(TrainWorldModelConfig(episodes=(first,), run=config))
    with pytest.raises(
        ValueError, match=r"files: .*a\.hdf5.* there, .*b\.hdf5.* now.*another folder"
    ):
        own.train_world_model(TrainWorldModelConfig(episodes=(second,), run=config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": ("b.hdf5",)}, r"files: .*a\.hdf5', 1, 3\]\] there, .*b\.hdf5', 1, 3\]\] now"),
        ({"init": "lift"}, "init: None there, 'lift' now"),
        ({"video": VideoTrainingConfig(steps=3)}, r"video\.steps: \d+ there, 3 now"),
    ],
)
def test_an_interrupted_training_goes_on_with_what_it_began_with(
    tmp_path, config, fits, monkeypatch, options, message
):
    for name in ("a.hdf5", "b.hdf5"):
        record(tmp_path / name, (1,))
    run = WMPOConfig(preset="tiny-video", out=config.out)
    begun = {"episodes": ("a.hdf5",), "run": run}
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(own, "fit_world_model", interrupted)
        own.train_world_model(made(begun))
    with pytest.raises(ValueError, match=message):
        own.train_world_model(made(begun | options))
    assert not fits
    lower = VideoTrainingConfig(least_psnr=20.0)  # as the error of an autoencoder advises
    own.train_world_model(made(begun | {"video": lower}))
    assert fits == [([1], None)]


def test_a_training_that_is_refused_claims_nothing(tmp_path, config, fits, monkeypatch):
    first, second = (record(tmp_path / name, (1,)) for name in ("a.hdf5", "b.hdf5"))

    def refuse(_, run, *found):
        run.stage("world_model", {"steps": 1}).log(0, {"x": 1.0})
        raise ValueError("too small")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="too small"):
        patch.setattr(own, "fit_world_model", refuse)
        own.train_world_model(TrainWorldModelConfig(episodes=(first,), run=config))
    assert not list((config.out / "training").iterdir())
    own.train_world_model(TrainWorldModelConfig(episodes=(second,), run=config))
    assert fits == [([1], None)]


def test_a_training_that_is_refused_later_keeps_what_it_learnt(tmp_path, config, monkeypatch):
    path = record(tmp_path / "a.hdf5", (1,))

    def refuse(_, run, *found):
        run.stage("world_model").save({"x": 1})
        raise ValueError("too blurred")

    monkeypatch.setattr(own, "fit_world_model", refuse)
    with pytest.raises(ValueError, match="too blurred"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    assert (config.out / "training" / "world_model" / "checkpoints" / "last.pt").exists()


def made(options: dict) -> TrainWorldModelConfig:
    paths = tuple(map(Path, options["episodes"]))
    return TrainWorldModelConfig(**{**options, "episodes": paths})


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def test_what_a_run_made_of_its_own_episodes_is_not_made_again(tmp_path, config, fits):
    Run(config.out, config).once("train-world-model", dict)
    path = record(tmp_path / "a.hdf5", (1,))
    with pytest.raises(ValueError, match="trains on what it records itself; choose another --out"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    assert not fits


def test_the_seed_of_the_run_is_that_of_a_video_transformer(tmp_path, config, fits):
    path, video = record(tmp_path / "a.hdf5", (1,)), VideoTrainingConfig(seed=1)
    with pytest.raises(ValueError, match="video.seed follows seed"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config, video=video))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("command", "made", "stage"),
    [
        (own.train_world_model, TrainWorldModelConfig, "train-world-model"),
        (own.train_success, EpisodesConfig, "train-success"),
    ],
)
def test_without_episodes_it_is_the_stage_of_a_run(config, monkeypatch, command, made, stage):
    done = []
    monkeypatch.setattr(wmpo, "do", lambda *given: done.append(given))
    command(made(run=config))
    assert done == [(stage, config, wmpo.STAGES)]


def test_nothing_to_go_on_with_is_refused(config, fits):
    with pytest.raises(ValueError, match="name the new episodes"):
        own.train_world_model(TrainWorldModelConfig(run=config, init="lift"))
    assert not fits


def test_an_unknown_preset_is_refused_before_anything_is_written(tmp_path, fits):
    path = record(tmp_path / "a.hdf5", (1,))
    config = WMPOConfig(preset="huge", out=tmp_path / "run")
    with pytest.raises(ValueError, match="preset must be one of"):
        own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=config))
    assert not (tmp_path / "run").exists() and not fits


def test_a_new_model_takes_its_scale_from_the_episodes_and_a_tuned_one_keeps_it(tmp_path, config):
    first = record(tmp_path / "a.hdf5", (10, 10, 10, 10, 10))
    own.train_world_model(TrainWorldModelConfig(episodes=(first,), run=config))
    new = WorldModel.from_pretrained(config.out / "world_model")
    assert new.body_mean.item() == pytest.approx(11.5, abs=0.01)  # 10, 11, 12, 13
    second = record(tmp_path / "b.hdf5", (200, 200, 200, 200, 200))
    out = WMPOConfig(preset="tiny", out=tmp_path / "tuned", world_model=QUICK)
    init = str(config.out / "world_model")
    own.train_world_model(TrainWorldModelConfig(episodes=(second,), run=out, init=init))
    tuned = WorldModel.from_pretrained(out.out / "world_model")
    assert torch.equal(tuned.body_mean, new.body_mean) and torch.equal(tuned.body_std, new.body_std)
    pairs = zip(tuned.renderer.parameters(), new.renderer.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_the_preset_says_which_class_is_trained_and_a_classifier_learns_from_it(tmp_path, config):
    path = record(tmp_path / "a.hdf5", (10, 60, 110, 160, 210))
    judge = SuccessTrainingConfig(steps=1, batch_size=2, folds=2)
    run = WMPOConfig(preset="tiny-video", out=config.out, success=judge)
    own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=run, video=QUICK_VIDEO))
    model = load_world_model(run.out / "world_model")
    assert type(model) is VideoTransformer
    assert replace(model.config, scaling_factor=VIDEO.scaling_factor) == VIDEO
    assert model.config.scaling_factor != VIDEO.scaling_factor  # measured
    own.train_success(EpisodesConfig(episodes=(path,), run=run))
    found = SuccessClassifier.from_pretrained(run.out / "success").config
    assert (found.channels, found.side, found.vector) == (4, 4, 0)


def test_a_model_is_tuned_by_the_class_that_it_was_saved_as_whatever_the_preset(tmp_path, config):
    torch.manual_seed(0)
    new = VideoTransformer(replace(VIDEO, scaling_factor=3.0))
    new.save_pretrained(tmp_path / "new")
    path = record(tmp_path / "a.hdf5", (10, 60, 110, 160, 210))
    settings = {"init": str(tmp_path / "new"), "video": QUICK_VIDEO}
    run = replace(config, world_model=WorldModelTrainingConfig())
    own.train_world_model(TrainWorldModelConfig(episodes=(path,), run=run, **settings))
    tuned = load_world_model(config.out / "world_model")
    assert tuned.config == new.config
    changed = {
        name.partition(".")[0]
        for name, value in tuned.state_dict().items()
        if not torch.equal(value, new.state_dict()[name].half().float())
    }
    assert "leave" in changed and "autoencoder" not in changed


def test_presets_of_video_transformers_are_for_files_of_ones_own(config):
    run = replace(config, preset="tiny-video")
    with pytest.raises(ValueError, match="preset must be one of"):
        own.train_world_model(TrainWorldModelConfig(run=run))
    assert not run.out.exists()

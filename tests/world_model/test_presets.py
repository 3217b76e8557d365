"""Sizes of world models."""

from __future__ import annotations

import pytest

from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import BODY, PRESETS, WorldModelConfig


def test_derived_sizes_by_hand():
    # 32 pixels are 4 cells of 8: 16 cells of 10 channels, then 7, then 5.
    config = WorldModelConfig(image_size=32, width=10, vector=7, body=("a", "b"), body_size=5)
    assert (config.side, config.latent_size) == (4, 172)


def test_nano_measures_a_hand_seven_joints_and_two_fingers():
    # The place of the hand, cosine, sine and speed of the joints, place and speed of the fingers.
    assert PRESETS["nano"].body_size == 3 + 3 * 7 + 2 * 2


@pytest.mark.parametrize("preset", ["nano", "nano-object"])
def test_hand_fingers_and_object_are_where_the_config_says(preset):
    config = PRESETS[preset]
    sizes = BODY | {"object": 3, "faces": 9, "velocity": 6}
    names = [key for key, n in sizes.items() for _ in range(n)]
    assert [names[i] for i in config.hand] == ["robot0_eef_pos"] * 3
    assert [names[i] for i in config.fingers] == ["robot0_gripper_qpos"] * 2
    assert [names[i] for i in config.speeds] == ["robot0_gripper_qvel"] * 2
    assert [names[i] for i in config.objects] == ["object"] * (3 * (preset == "nano-object"))
    assert [names[i] for i in config.turns] == ["faces"] * (9 * (preset == "nano-object"))
    assert [names[i] for i in config.velocities] == ["velocity"] * (6 * (preset == "nano-object"))


def test_what_hand_and_object_do_to_each_other_has_units_of_its_own():
    config = WorldModelConfig(width=0, vector=0, units=8, contact_units=12)
    motion = WorldModel(config).transition.motion
    assert motion.met[2].weight.shape[1:] == (12, 12) and motion.robot[2].weight.shape[1:] == (8, 8)


def test_an_object_has_a_pose_and_a_velocity_beside_what_the_robot_measures():
    robot, both = PRESETS["nano"], PRESETS["nano-object"]
    assert both.body == (*robot.body, "object[:3]", "faces:object[3:7]", "object_velocity")
    assert both.body_size == robot.body_size + 3 + 9 + 6


@pytest.mark.parametrize("preset", ["nano", "nano-object"])
def test_nano_fits_under_twelve_megabytes_in_half_precision(preset):
    model = WorldModel(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) * 2 < 12e6


def test_noise_has_a_number_for_every_step_and_measurement(model):
    assert model.noise_shape(4) == (4, 3)

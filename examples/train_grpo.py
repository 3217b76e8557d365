"""Improve the bundled base policy by GRPO in the imagined world, in a script of your own."""

import gymnasium as gym

import wm_gym  # noqa: F401  registers the ids
from policies import TokenVLA
from trainers import grpo
from wm_gym.runs import Run

config = grpo.GRPOConfig(iterations=5)
policy = TokenVLA.from_pretrained("lift/policy_base")


def make(split: str, num_envs: int) -> gym.vector.VectorEnv:
    """Make imagined episodes; backend="real", without the last two, makes it online GRPO."""
    return gym.make_vec(
        "wm_gym/Lift-v0",
        num_envs=num_envs,
        chunk=8,
        split=split,
        autoreset_mode="disabled",
        dtype="bfloat16",
        unanimous=split == "train",  # practice pays for what every network imagines alone
    )


run = Run("runs/train_grpo", config, resume=True)
grpo.train(config, policy, make("train", 128), run, validation_env=make("validation", 64))
policy.save_pretrained("runs/train_grpo/policy")

"""Train Stable-Baselines3's SAC on imagined chunks of 4 steps, and judge it in the real world."""

import gymnasium as gym
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import wm_gym  # noqa: F401  registers the ids
from wm_gym.bridges.sb3 import SB3VecEnv

DECISIONS = 1_024  # of 4 imagined steps each: enough to see it run; raise it to learn
EPISODES = 16  # real ones


def make(backend: str, num_envs: int, split: str) -> SB3VecEnv:
    """Make either world with chunks of 4 actions, which SB3 sees as one action of 28 numbers."""
    env = gym.make_vec(
        "wm_gym/Lift-v0",
        num_envs=num_envs,
        backend=backend,
        chunk=4,
        split=split,
        autoreset_mode="same_step",
    )
    return SB3VecEnv(env)


imagined = make("imagined", 16, "train")
model = SAC(
    "MultiInputPolicy",
    imagined,
    buffer_size=20_000,  # 25 kB each at 64 pixels
    learning_starts=512,
    gradient_steps=4,
    verbose=1,
    seed=0,
)
model.learn(DECISIONS)
imagined.close()

real = make("real", 2, "validation")
success, _ = evaluate_policy(model, real, EPISODES)  # an episode returns 1 for success, else 0
real.close()
print(f"{success:.0%} of {EPISODES} real episodes lift the cube")

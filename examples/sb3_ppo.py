"""Train Stable-Baselines3's PPO in the imagined world, and judge it in the real world."""

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

import wm_gym  # noqa: F401  registers the ids
from wm_gym.bridges.sb3 import SB3VecEnv

STEPS = 8_192  # of imagined control: enough to see it run; raise it to learn
EPISODES = 16  # real ones


def make(backend: str, num_envs: int, split: str) -> SB3VecEnv:
    """Make either world; SB3 wants finished episodes to restart within the step."""
    env = gym.make_vec(
        "wm_gym/Lift-v0",
        num_envs=num_envs,
        backend=backend,
        split=split,
        autoreset_mode="same_step",
    )
    return SB3VecEnv(env)


imagined = make("imagined", 32, "train")
model = PPO("MultiInputPolicy", imagined, n_steps=64, batch_size=256, n_epochs=4, verbose=1, seed=0)
model.learn(STEPS)
imagined.close()

real = make("real", 2, "validation")
success, _ = evaluate_policy(model, real, EPISODES)  # an episode returns 1 for success, else 0
real.close()
print(f"{success:.0%} of {EPISODES} real episodes lift the cube")

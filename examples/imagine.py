"""Step 16 imagined robots with random actions, and save what they saw as a video."""

import gymnasium as gym
import numpy as np

import wm_gym  # noqa: F401  registers the ids
from wm_gym.evaluation.video import tile, write_video

env = gym.make_vec("wm_gym/Lift-v0", num_envs=16, chunk=8, return_frames=True)
env.action_space.seed(0)
obs, info = env.reset(seed=0)
frames = [obs["image"][:, None]]  # (n, 1, H, W, 3)
for _ in range(6):
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    frames.append(info["frames"])  # (n, 8, H, W, 3)
env.close()
write_video("imagined.mp4", tile(np.concatenate(frames, axis=1)))
print("imagined.mp4 shows 16 robots for 48 steps of 1/20 s")

"""Play the bundled policy from the same starts in both worlds: only `backend` changes."""

import gymnasium as gym
import numpy as np

import wm_gym  # noqa: F401  registers the ids
from policies import TokenVLA

policy = TokenVLA.from_pretrained("lift/policy_base")
for backend in ("imagined", "real"):
    env = gym.make_vec(
        "wm_gym/Lift-v0",
        num_envs=16,
        backend=backend,
        chunk=8,
        split="validation",
        autoreset_mode="disabled",
    )
    obs, info = env.reset(seed=0, options={"start": np.arange(16)})
    while True:
        action = policy.act(obs, env.unwrapped.instructions, greedy=True).action
        obs, reward, terminated, truncated, info = env.step(action.detach().numpy())
        if not info["active"].any() or (info["elapsed_steps"] >= 64).all():
            break
    print(f"{backend:>8}: {info['success'].sum()} of 16 episodes lift the cube")
    env.close()

"""Stable-Baselines3: python -m syncd -- python sb3_ppo.py"""

import os
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env

root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
newest = max(root.glob("ppo_*_steps.zip"), key=lambda path: path.stat().st_mtime, default=None)
env = make_vec_env("CartPole-v1")
if newest:
    model = PPO.load(newest, env)
    print(f"resumed at step {model.num_timesteps}", flush=True)
else:
    model = PPO("MlpPolicy", env)
saver = CheckpointCallback(save_freq=2000, save_path=str(root), name_prefix="ppo")
model.learn(1_000_000, callback=saver, reset_num_timesteps=newest is None)

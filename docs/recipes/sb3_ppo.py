"""Stable-Baselines3: python -m syncd -- python sb3_ppo.py"""

import os
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback

root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
newest = max(root.glob("ppo_*_steps.zip"), key=lambda path: path.stat().st_mtime, default=None)
if newest:
    model = PPO.load(newest, "CartPole-v1")
    print(f"resumed at step {model.num_timesteps}", flush=True)
else:
    model = PPO("MlpPolicy", "CartPole-v1")
saver = CheckpointCallback(save_freq=2000, save_path=str(root), name_prefix="ppo")
model.learn(1_000_000, callback=saver, reset_num_timesteps=newest is None)

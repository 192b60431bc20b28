"""DeepSpeed: python -m syncd -- deepspeed deepspeed_zero.py"""

import os

import deepspeed
import torch

root = os.environ.get("CHECKPOINT_DIR", "checkpoints")
model = torch.nn.Linear(8, 1)
config = {"train_micro_batch_size_per_gpu": 64, "zero_optimization": {"stage": 1}}
optimizer = torch.optim.Adam(model.parameters())
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
found, _ = engine.load_checkpoint(root)
if found:
    print(f"resumed at step {engine.global_steps}", flush=True)
while engine.global_steps < 100_000:
    x = torch.randn(64, 8, device=engine.device)
    loss = (engine(x) - x.sum(1, keepdim=True)).square().mean()
    engine.backward(loss)
    engine.step()
    if engine.global_steps % 200 == 0:
        engine.save_checkpoint(root)

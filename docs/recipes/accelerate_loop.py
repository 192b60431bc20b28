"""Accelerate: python -m syncd -- accelerate launch accelerate_loop.py"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator

root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
accelerator = Accelerator()
model = torch.nn.Linear(8, 1)
data = torch.utils.data.DataLoader(torch.randn(1_000_000, 8), batch_size=16)
model, optimizer, data = accelerator.prepare(model, torch.optim.Adam(model.parameters()), data)
done = 0
if saved := sorted(root.glob("checkpoint_*")):
    accelerator.load_state(saved[-1])
    done = int(saved[-1].name.removeprefix("checkpoint_"))
    accelerator.print(f"resumed at step {done}", flush=True)
for step, x in enumerate(accelerator.skip_first_batches(data, done), start=done + 1):
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    if step % 500 == 0:
        accelerator.save_state(root / f"checkpoint_{step:08}")

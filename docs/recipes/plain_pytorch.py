"""Plain PyTorch: python -m syncd -- python plain_pytorch.py"""

import os
from pathlib import Path

import torch

root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
root.mkdir(exist_ok=True)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.Adam(model.parameters())
done = 0
if saved := sorted(root.glob("step-*.pt")):
    state = torch.load(saved[-1], weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    done = state["step"]
    print(f"resumed at step {done}", flush=True)
for step in range(done + 1, 200_001):
    x = torch.randn(64, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 2000 == 0:  # aside, then renamed: whole from the first moment it has its name
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, root / "saving.tmp")
        (root / "saving.tmp").rename(root / f"step-{step:08}.pt")

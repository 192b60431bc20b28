"""Lightning: python -m syncd -- python lightning_trainer.py"""

import os
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def on_train_start(self):
        if self.global_step:
            print(f"resumed at step {self.global_step}", flush=True)

    def training_step(self, batch, _index):
        return (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


root = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
saver = ModelCheckpoint(root, "{step:08d}", every_n_train_steps=500, save_top_k=-1)
newest = max(root.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
data = torch.utils.data.DataLoader(torch.randn(100_000, 8), batch_size=16)
trainer = L.Trainer(max_epochs=100, callbacks=saver, logger=False, enable_progress_bar=False)
trainer.fit(Model(), data, ckpt_path=newest)

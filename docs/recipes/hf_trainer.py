"""Hugging Face Trainer: python -m syncd -- python hf_trainer.py"""

import os

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, x, labels):
        found = self.layer(x)
        return {"loss": (found - labels).square().mean(), "logits": found}


class Tell(TrainerCallback):
    def on_train_begin(self, args, state, control, **_):
        if state.global_step:
            print(f"resumed at step {state.global_step}", flush=True)


root = os.environ.get("CHECKPOINT_DIR", "checkpoints")
os.makedirs(root, exist_ok=True)
data = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in torch.randn(10_000, 8)]
arguments = TrainingArguments(
    root, save_steps=300, num_train_epochs=100, report_to="none", disable_tqdm=True
)
trainer = Trainer(Model(), arguments, train_dataset=data, callbacks=[Tell()])
trainer.train(resume_from_checkpoint=get_last_checkpoint(root))

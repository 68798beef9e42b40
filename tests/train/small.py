"""A task small enough to run hundreds of steps, with everything a resume could get wrong."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from secvit.train import Loop, Schedule, fit


class Net(nn.Module):
    """Batch norm (buffers), dropout (random numbers), an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.b = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.drop(self.norm(self.a(x)).relu()))


class Task(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(1))  # a weight outside the model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        noise = random.random() + np.random.rand()
        logits = self.scale * self.model(batch["x"]) + 1e-3 * noise
        return {
            "loss": nn.functional.cross_entropy(logits, batch["y"]),
            "noise": torch.tensor(noise),
        }


class Data:
    """50 samples; the augmentation of a sample is a function of its key."""

    def __init__(self, samples: int = 50) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(samples, 6, generator=generator)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, key: int) -> dict[str, torch.Tensor]:
        index = key % len(self)
        shift = torch.randn(6, generator=torch.Generator().manual_seed(key))
        return {"x": self.x[index] + 0.1 * shift, "y": self.y[index]}


def loop(**changes) -> Loop:
    settings = {
        "batch_size": 8,
        "steps": 20,
        "device": "cpu",
        "ema_decay": 0.9,
        "log_every": 4,
        "save_every": 7,
    }
    return Loop(**{**settings, **changes})


def run(output, settings=None, *, task=None, data=None, schedule=None, resume="auto", **more):
    torch.manual_seed(0)
    task = task or Task(Net())
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    schedule = schedule or Schedule(warmup_steps=3)
    result = fit(task, optimizer, data or Data(), settings or loop(), schedule, output, resume=resume, **more)
    return task, result

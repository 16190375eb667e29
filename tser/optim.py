"""Optimiser and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tser.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser as configured, over all parameters of ``model`` that learn.

    Args:
        model: on its device.
        config: which optimiser and its settings.
        lr: peak learning rate.
    """
    groups = weight_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum)


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weights with ``weight_decay``; biases, batch norm and such without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate(peak: float, progress: float, epochs: int, warmup_epochs: float) -> float:
    """Linear warm-up from 5 % of the peak, then one cosine to zero.

    Args:
        peak: highest learning rate.
        progress: epochs done, 0 <= progress <= epochs.
        epochs: of the whole training.
        warmup_epochs: of warm-up; at most half of the training.
    """
    warmup = min(warmup_epochs, epochs / 2)
    if progress < warmup:
        return peak * (0.05 + 0.95 * progress / warmup)
    fraction = (progress - warmup) / (epochs - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * fraction))

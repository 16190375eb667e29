"""The TSER distillation loss: temporal separation with entropy regularisation.

Yu et al., "Temporal Separation with Entropy Regularization for Knowledge Distillation in
Spiking Neural Networks", CVPR 2025, arXiv 2503.03144.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tser.config import LossConfig


@dataclass(frozen=True)
class LossParts:
    """The loss and its named parts, each a scalar tensor.

    Attributes:
        total: what is minimised.
        ce: cross-entropy against the labels.
        kl: temperature-scaled divergence from the teacher (0 when there is none).
        entropy: mean entropy of the per-step student distributions [nat].
        self_kl: divergence of the steps from their own mean (0 when its weight is 0).
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    entropy: Tensor
    self_kl: Tensor

    def as_floats(self) -> dict[str, float]:
        """The parts as plain numbers, for logs."""
        return {name: float(value.detach()) for name, value in vars(self).items()}


def tser_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, config: LossConfig
) -> LossParts:
    r"""Distillation loss on the student's logits of every step.

    With student logits :math:`z_t`, teacher logits :math:`a`, temperature :math:`\tau`,
    :math:`q_t = softmax(z_t/\tau)` and :math:`p = softmax(a/\tau)`:

    * CE per step :math:`\frac1T\sum_t CE(z_t, y)`, aggregated :math:`CE(\bar z, y)`;
    * KL per step :math:`\frac{\tau^2}{T}\sum_t KL(p \| q_t)`, aggregated
      :math:`\tau^2 KL(p \| softmax(\bar z/\tau))`;
    * entropy :math:`\frac1T\sum_t H(q_t)`, maximised;
    * self-distillation :math:`S = \frac{\tau^2}{T}\sum_t KL(\bar q \| q_t)` from
      :math:`\bar q = softmax(\bar z/\tau)`, which passes no gradient (Yu et al., ICML 2025,
      arXiv 2501.15925);
    * total :math:`CE + \alpha KL - \gamma H + \sigma S` ("additive") or
      :math:`(1-\alpha) CE + \alpha KL - \gamma H + \sigma S` ("convex").

    Args:
        logits: student logits, ``[T, B, K]``.
        labels: class indices, ``[B]``.
        teacher_logits: ``[B, K]``; may be None when ``config.kl`` is "none".
        config: which terms, and their weights.

    Returns:
        The total and its parts.

    Raises:
        ValueError: shapes that do not fit, or a KL term without teacher logits.
    """
    if logits.ndim != 3:
        raise ValueError(f"student logits must be [T, B, K], got shape {tuple(logits.shape)}")
    timesteps, batch, classes = logits.shape
    if labels.shape != (batch,):
        raise ValueError(f"labels must be [{batch}], got shape {tuple(labels.shape)}")

    mean_logits = logits.mean(0)
    if config.ce == "per-step":
        ce = F.cross_entropy(logits.flatten(0, 1), labels.repeat(timesteps))
    else:
        ce = F.cross_entropy(mean_logits, labels)

    kl = torch.zeros_like(ce)
    if config.kl != "none":
        if teacher_logits is None or teacher_logits.shape != (batch, classes):
            shape = None if teacher_logits is None else tuple(teacher_logits.shape)
            raise ValueError(f"teacher logits must be [{batch}, {classes}], got {shape}")
        steps = logits if config.kl == "per-step" else mean_logits.unsqueeze(0)
        kl = _divergence(teacher_logits, steps, config.temperature)
    self_kl = torch.zeros_like(ce)
    if config.self_weight:
        self_kl = _divergence(mean_logits.detach(), logits, config.temperature)

    scale = config.temperature if config.entropy_at == "temperature" else 1.0
    log_q = F.log_softmax(logits / scale, dim=-1)
    entropy = -(log_q.exp() * log_q).sum(-1).mean()

    ce_weight = 1 - config.alpha if config.weighting == "convex" else 1.0
    total = ce_weight * ce + config.alpha * kl - config.gamma * entropy
    total = total + config.self_weight * self_kl
    return LossParts(total=total, ce=ce, kl=kl, entropy=entropy, self_kl=self_kl)


def _divergence(target: Tensor, steps: Tensor, temperature: float) -> Tensor:
    """``temperature^2 KL(target || step)``, mean over steps and samples.

    Args:
        target: logits ``[B, K]``.
        steps: logits ``[S, B, K]``.
        temperature: of both softmaxes.
    """
    log_p = F.log_softmax(target / temperature, dim=-1)
    log_q = F.log_softmax(steps / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()

"""Distillation methods by name: the ladder of the paper's ablation, and later additions.

A method is a function that returns the settings of ``[loss]`` which make it what it is; all else
(weights, temperature, network, recipe) stays as configured. To add one, write such a function
and put it into ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]


def snn() -> Settings:
    """A spiking network without a teacher: cross-entropy of the mean logits."""
    return {"ce": "aggregated", "kl": "none", "gamma": 0.0, "self_weight": 0.0}


def kd() -> Settings:
    """Classical distillation: cross-entropy and divergence of the mean logits."""
    return {"ce": "aggregated", "kl": "aggregated", "gamma": 0.0, "self_weight": 0.0}


def ce_per_step() -> Settings:
    """Classical distillation with the cross-entropy at every step."""
    return kd() | {"ce": "per-step"}


def kl_per_step() -> Settings:
    """Classical distillation with the divergence at every step."""
    return kd() | {"kl": "per-step"}


def separation() -> Settings:
    """Temporal separation: both terms at every step, no entropy term."""
    return kd() | {"ce": "per-step", "kl": "per-step"}


def tser() -> Settings:
    """TSER (Yu et al., CVPR 2025): temporal separation with entropy regularisation."""
    return separation() | {"gamma": 0.01}


def tser_self() -> Settings:
    """TSER with full-range self-distillation (Yu et al., ICML 2025, arXiv 2501.15925)."""
    return tser() | {"self_weight": 0.5}


METHODS: dict[str, Callable[[], Settings]] = {
    "snn": snn,
    "kd": kd,
    "ce-per-step": ce_per_step,
    "kl-per-step": kl_per_step,
    "separation": separation,
    "tser": tser,
    "tser-self": tser_self,
}
"""Method name -> settings of ``[loss]``; the order is that of the ablation."""

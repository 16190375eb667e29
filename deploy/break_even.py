"""Published rules of when a spiking network takes less energy than a conventional one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tser.deploy.counting import OperationCount
from tser.deploy.energy import senders

SYNAPSE_LOW, SYNAPSE_HIGH = 0.15, 1.38
RATE, RATE_STEPS = 0.057, 5

Verdict = Literal["below", "between", "above", "not known"]


@dataclass(frozen=True)
class Rule:
    """One rule held against a network.

    Attributes:
        name: short.
        quantity: what is compared.
        value: of this network; None where it cannot be told.
        low: below it the spiking network wins.
        high: above it the conventional one wins.
        verdict: where the value lies.
        applies: whether the rule was stated for such a run.
        text: the finding in words.
        source: publication.
        url: where it is.
    """

    name: str
    quantity: str
    value: float | None
    low: float
    high: float
    verdict: Verdict
    applies: bool
    text: str
    source: str
    url: str


def spikes_per_synapse(counts: OperationCount) -> float | None:
    """Events that a synapse carries in one inference, mean over the weighted spiking layers."""
    rows = [row for row in counts.layers if row.operation == "AC" and row.kind != "identity"]
    synapses = sum(row.dense for row in rows) / counts.timesteps
    carried = sum(int(row.sop_structural.sum()) for row in rows)
    return carried / synapses if synapses else None


def firing_rate(counts: OperationCount) -> float | None:
    """Spikes a neuron and step, mean over the neurons that send spikes; 0..1."""
    read = {row.source for row in counts.layers if row.kind != "neuron"}
    updates = sum(row.neuron_updates for row in counts.layers if row.name in read)
    return sum(senders(counts)) / updates if updates else None


def break_even(counts: OperationCount) -> list[dict[str, Any]]:
    """The rules, as plain values."""
    return [asdict(_synapse_rule(counts)), asdict(_rate_rule(counts))]


def _verdict(value: float | None, low: float, high: float) -> Verdict:
    if value is None:
        return "not known"
    if value < low:
        return "below"
    return "above" if value > high else "between"


def _synapse_rule(counts: OperationCount) -> Rule:
    value = spikes_per_synapse(counts)
    verdict = _verdict(value, SYNAPSE_LOW, SYNAPSE_HIGH)
    words = {
        "below": "below 0.15: less energy than even an ANN with full data reuse, by this study",
        "between": "between 0.15 and 1.38: less energy than some ANN circuits, more than others",
        "above": "above 1.38: more energy than every ANN circuit of this study",
        "not known": "no layer takes spikes",
    }[verdict]
    return Rule(
        "spikes per synapse",
        "spikes per synapse and inference, over layers that take spikes",
        value,
        SYNAPSE_LOW,
        SYNAPSE_HIGH,
        verdict,
        value is not None,
        f"{words}; found for neurons without leak, and leaky ones take more",
        "M. Dampfhoffer et al., Are SNNs really more energy-efficient than ANNs? An in-depth "
        "hardware-aware study, IEEE TETCI 7(3):731, 2023 (online 2022)",
        "https://doi.org/10.1109/TETCI.2022.3214509",
    )


def _rate_rule(counts: OperationCount) -> Rule:
    value = firing_rate(counts)
    verdict = _verdict(value, RATE, RATE)
    bits = math.ceil(math.log2(counts.timesteps + 1))
    applies = value is not None and counts.timesteps == RATE_STEPS
    words = {
        "below": "below 5.7 %: less energy than the quantised ANN, by this study",
        "between": "at 5.7 %: as much energy as the quantised ANN, by this study",
        "above": "above 5.7 %: more energy than the quantised ANN, by this study",
        "not known": "no neuron sends spikes",
    }[verdict]
    scope = (
        ""
        if counts.timesteps == RATE_STEPS
        else f"; stated for T = 5 and this run has T = {counts.timesteps}, so a rough guide only"
    )
    return Rule(
        "firing rate",
        f"spikes per neuron and step, against an ANN with {bits}-bit activations",
        value,
        RATE,
        RATE,
        verdict,
        applies,
        words + scope,
        "Z. Yan et al., Reconsidering the energy efficiency of spiking neural networks inference "
        "from analytical perspectives, arXiv 2409.08290 v4 (v3: 6.4 % for T of 5 to 10)",
        "https://arxiv.org/abs/2409.08290",
    )

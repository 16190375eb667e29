"""The result of a validation as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser.deploy.named_inputs import Inputs
from tser.deploy.references import Reference, StaticCheck
from tser.deploy.tally import Comparison, Evidence, LayerTally

SCHEMA_VERSION = 2


def document(
    path: Path,
    reference: Reference,
    evidence: Evidence,
    static: StaticCheck,
    inputs: Inputs | None,
    timesteps: int,
    probes: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """validation.json.

    Args:
        path: the graph that was judged.
        reference: what it was judged against.
        evidence: of the inputs.
        static: what differs without running.
        inputs: what both were run on; None: probes only.
        timesteps: T.
        probes: see `probing`; None: not asked for.
    """
    # What was not run has no say.
    verdicts = [evidence.verdict] if inputs is not None else []
    verdicts += [one["verdict"] for one in probes or [] if one["counts"]]
    verdict = max(verdicts, default="E3")
    return {
        "schema_version": SCHEMA_VERSION,
        "graph": str(path),
        "against": reference.source,
        "reference": reference.title,
        "data": None if inputs is None else inputs.name,
        "split": "" if inputs is None else inputs.split,
        "samples": evidence.samples,
        "timesteps": timesteps,
        "verdict": "E3" if static.contradictions else verdict,
        "static": {"identical": not static.differences, "differences": static.differences},
        "contradictions": static.contradictions,
        "graph_digest": static.graph_digest,
        "student_digest": static.reference_digest,
        "student_weights": reference.weights,
        "accuracy": {
            name: [int(n) / evidence.samples for n in correct]
            for name, correct in evidence.correct.items()
        },
        "backends": [_backend(comparison) for comparison in evidence.comparisons],
        "probes": probes,
    }


def _backend(comparison: Comparison) -> dict[str, Any]:
    layers = comparison.layers.values()
    return {
        "name": comparison.name,
        "source": comparison.source,
        "verdict": comparison.verdict,
        "reason": comparison.reason(),
        "flips": comparison.flips,
        "seeds": sum(layer.seeds for layer in layers),
        "violations": sum(layer.violations for layer in layers),
        "neuron_steps": comparison.neuron_steps,
        "first_divergence": comparison.first_divergence,
        "diagnosis": [
            {
                "layer": name,
                "rules": list(found.departures),
                "alternatives": [list(names) for names in found.alternatives],
                "text": found.text,
            }
            for name, found in comparison.diagnoses.items()
        ],
        "remark": comparison.remark,
        "uncertifiable": comparison.uncertifiable,
        "not_replayed": comparison.not_replayed,
        "argmax_differences": comparison.argmax_differences,
        "logits": {
            "max_abs_difference": comparison.logits_max_difference,
            "outside_bound": comparison.logits_outside_bound,
        },
        "layers": [_layer(layer, comparison.samples) for layer in layers],
    }


def _layer(layer: LayerTally, samples: int) -> dict[str, Any]:
    steps = layer.neurons * samples

    def rate(spikes: NDArray[np.int64]) -> list[float]:
        return [float(n) / steps for n in spikes]

    return {
        "name": layer.name,
        "neurons": layer.neurons,
        "flips": layer.flips.tolist(),
        "seeds": layer.seeds,
        "seeds_per_step": layer.seed_steps.tolist(),
        "uncertified_seeds": layer.uncertified,
        "violations": layer.violations,
        "replayed_flips": layer.replayed,
        "one_step_flips": layer.one_step,
        "certified_margin": layer.certified_margin,
        "certified_bound": layer.certified_bound,
        "rate_error": layer.count_distance / (steps * len(layer.flips)),
        "best_lag": layer.lag,
        "firing_rate_reference": rate(layer.reference),
        "firing_rate_candidate": rate(layer.candidate),
    }

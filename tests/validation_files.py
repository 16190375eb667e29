"""What validation.json holds, for tests of what reads it."""

from __future__ import annotations

from typing import Any


def layer(name: str = "neurons", flips: tuple[int, ...] = (0, 1), **other: Any) -> dict[str, Any]:
    """One layer of a backend, with one certified seed where it has flips."""
    some = any(flips)
    first = next((t for t, count in enumerate(flips) if count), 0)
    return {
        "name": name,
        "neurons": 70,
        "flips": list(flips),
        "seeds": int(some),
        "seeds_per_step": [int(some and t == first) for t in range(len(flips))],
        "uncertified_seeds": 0,
        "violations": 0,
        "replayed_flips": int(some),
        "one_step_flips": int(some),
        "certified_margin": 1e-7 if some else 0.0,
        "certified_bound": 1e-5 if some else 0.0,
        "rate_error": 0.0125,
        "best_lag": 0,
        "firing_rate_reference": [0.25] * len(flips),
        "firing_rate_candidate": [0.26] * len(flips),
        **other,
    }


def divergence(**other: Any) -> dict[str, Any]:
    """Neuron 5 of three that are shown, at t = 1; the reference fires."""
    return {
        "sample": 3,
        "t": 1,
        "layer": "neurons",
        "neuron": [5],
        "reference": True,
        "v_minus_threshold": 1e-7,
        "bound": 1e-5,
        "window": {
            "first_neuron": 4,
            "position": 1,
            "reference": [[0, 1], [0, 1], [1, 0]],
            "candidate": [[0, 1], [0, 0], [1, 1]],
            "threshold": 0.5,
            "membrane_reference": [0.3, 0.5000001],
            "membrane_candidate": [0.3, 0.5000001],
        },
        **other,
    }


def backend(name: str = "onnx", *layers: dict[str, Any], **other: Any) -> dict[str, Any]:
    """One executor: of one benign tie, when nothing else is said."""
    found = [*layers] or [layer()]
    flips = sum(sum(one["flips"]) for one in found)
    return {
        "name": name,
        "source": "model.onnx",
        "verdict": "E1" if flips else "E0",
        "reason": f"{flips} flips, all certified" if flips else "every spike is the same",
        "flips": flips,
        "seeds": sum(one["seeds"] for one in found),
        "violations": sum(one["violations"] for one in found),
        "neuron_steps": 7000,
        "first_divergence": divergence() if flips else None,
        "diagnosis": [],
        "remark": "",
        "uncertifiable": "",
        "not_replayed": "",
        "argmax_differences": 0,
        "logits": {"max_abs_difference": 0.5, "outside_bound": 0},
        "layers": found,
        **other,
    }


def probe(name: str = "onnx", verdict: str | None = "E0", **other: Any) -> dict[str, Any]:
    """One probe in one executor."""
    return {
        "network": "given",
        "probe": "zero",
        "backend": name,
        "verdict": verdict,
        "passed": None if verdict is None else verdict in ("E0", "E1"),
        "flips": 0,
        "reason": "every spike is the same",
        "diagnosis": [],
        "counts": True,
        **other,
    }


def validation(digest: str, *backends: dict[str, Any], **other: Any) -> dict[str, Any]:
    """The file as a whole; against the student, on 50 test images, T = 2."""
    found = [*backends] or [backend()]
    return {
        "schema_version": 2,
        "graph": "model.nir",
        "against": "run",
        "reference": "the student",
        "data": "digits",
        "split": "test",
        "samples": 50,
        "timesteps": 2,
        "verdict": max(one["verdict"] for one in found),
        "static": {"identical": True, "differences": []},
        "contradictions": [],
        "student_digest": digest,
        "student_weights": None,
        "graph_digest": digest,
        "accuracy": {"torch": [0.9, 0.98], "onnx": [0.9, 0.98]},
        "backends": found,
        "probes": None,
        **other,
    }

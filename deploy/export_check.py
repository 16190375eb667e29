"""The quick spike check of a new export: does the file do what the student does?"""

from __future__ import annotations

from dataclasses import dataclass, field

from tser.deploy.backends import NirBackend, TorchBackend
from tser.deploy.equivalence import compare
from tser.deploy.inputs import image_batches
from tser.deploy.tally import Evidence, Verdict
from tser.export.export import Exported
from tser.export.graph import resolve

SAMPLES = 4
"""Test images: enough to see a wrong rule; `tser validate` takes all of them."""


@dataclass
class QuickCheck:
    """Compares a few images, spike by spike, and keeps what it found.

    Attributes:
        samples: how many images were compared.
        verdict: of the last comparison; see `equivalence`.
        spikes: that the student fired.
        evidence: of the last comparison.
    """

    samples: int = SAMPLES
    verdict: Verdict | None = None
    spikes: int = 0
    evidence: Evidence | None = field(default=None, repr=False)

    def __call__(self, exported: Exported) -> str:
        """What is wrong with the file, in words that follow a colon; nothing when it holds."""
        lowered, student = exported.lowered, exported.student
        reference = TorchBackend(student, lowered.modules, "the student")
        candidate = NirBackend(exported.graph, student.timesteps, "the file")
        self.evidence = compare(
            resolve(lowered.graph),
            reference,
            [candidate],
            image_batches(exported.data, self.samples),
            lowered.bias_magnitude,
        )
        (comparison,) = self.evidence.comparisons
        self.verdict = comparison.verdict
        self.spikes = sum(int(layer.reference.sum()) for layer in comparison.layers.values())
        return "" if self.verdict in ("E0", "E1") else f"{self.verdict}, {comparison.reason()}"

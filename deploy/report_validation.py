"""The section on trust: is the exported graph the student, spike by spike?"""

from __future__ import annotations

from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Details,
    Facts,
    Heading,
    Note,
    Section,
    Table,
    Text,
    percent,
    step,
)
from tser.deploy.report_flips import flip_blocks
from tser.deploy.report_results import Commands, Results, age, missing
from tser.deploy.report_validation_file import BackendResult, ProbeResult, ValidationResult

VERDICTS = {
    "E0": "every spike is the same",
    "E1": "equal up to certified rounding ties",
    "E2": "firing rates are equivalent, spikes are not",
    "E3": "not equivalent",
}
PASSING = ("E0", "E1")
BACKENDS = {
    "torch": "PyTorch student",
    "reference": "the reference",
    "nir-f32": "NIR, NumPy interpreter (float32)",
    "nir-f64": "NIR, NumPy interpreter (float64)",
    "onnx": "ONNX Runtime",
    "onnx-noopt": "ONNX Runtime, graph optimisations off",
    "openvino": "OpenVINO",
    "norse": "Norse",
    "snntorch": "snnTorch",
    "spikingjelly": "SpikingJelly",
    "nirtorch": "nirtorch",
}
WORDS = (
    ("flip", "a spike of one run that the other has not, at one neuron, step and input"),
    (
        "seed",
        "a flip that no other flip explains: the executor was fed the spikes of the reference "
        "(or both runs had the same input until then), and this is the neuron's first. All other "
        "flips are propagated: they follow from earlier ones",
    ),
    (
        "margin of bound",
        "|v − v_th|, in float64, is how far the membrane is from the threshold, and the bound is "
        "how far rounding in float32 can move it. A seed whose margin is within its bound is a "
        "certified tie; shown is the largest margin of those",
    ),
    (
        "not explained",
        "recorded spikes that contradict the stated rule by more than rounding, whatever the "
        "layer was fed: here the arithmetic of the layer itself is another",
    ),
    ("rate error", "mean difference in spike counts, per neuron and step"),
    ("lag", "the shift in steps at which the two runs agree best; above 0 the candidate is late"),
    (
        "replayed",
        "flips that are left when every layer is fed the spikes of the reference: its own making",
    ),
    (
        "one step",
        "flips that are left when the membrane before each step is that of the reference, too. "
        "None, where replay has some: the decay or the reset is another, or rounding adds up",
    ),
)


def validation(results: Results) -> Section:
    """The student against its exported graphs, spike by spike."""
    title, found = "Validation of the exported graphs", results.validation
    if found is None:
        note = missing("Not checked yet", Commands(results.run).validate, results)
        return Section("validation", title, (note,))
    blocks: list[Block] = [
        *age(results.validation_is, "validation.json", Commands(results.run).validate),
        Text(_opening(found)),
        Facts(tuple(VERDICTS.items())),
        *_overview(found),
        Details("What the words mean", (Facts(WORDS),)),
        *_static(found),
        *_contradictions(found),
    ]
    for number, backend in enumerate(found.backends, 1):
        blocks += _backend(backend, found, f"validation-{number}")
    return Section("validation", title, (*blocks, *_probes(found)))


def backend_name(name: str) -> str:
    """An executor, for people."""
    return BACKENDS.get(name, name)


def cause(found: ValidationResult) -> str:
    """What has the worst verdict, in a few words; "" where all passes."""
    if found.verdict in PASSING:
        return ""
    worst = [backend_name(one.name) for one in found.backends if one.verdict == found.verdict]
    if not worst and found.contradictions:
        return "the file contradicts itself"
    if not worst:
        return "on a probe" if found.probes else ""
    return ", ".join(dict.fromkeys(worst))


def _opening(found: ValidationResult) -> str:
    of_student = found.reference == "the student"
    reference = "the reference, the PyTorch student" if of_student else "the reference"
    if not found.samples:
        ran = "No spike was compared on a data set."
    else:
        inputs = f"{found.split} images" if found.split else "inputs"
        ran = (
            f"Every spike of every layer and step is compared with that of {reference}, on "
            f"{found.samples:,} {inputs} of {found.data}, T = {found.timesteps}."
        )
    return f"{ran} The verdict, {found.verdict}, is the worst of all that was checked."


def _overview(found: ValidationResult) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if found.backends:
        rows = tuple(_verdict_row(backend, found.samples) for backend in found.backends)
        heads = ("executor", "verdict", "flips", "of neuron-steps", "seeds", "answers that differ")
        blocks.append(Table("Verdicts", heads, rows, "llrrrr"))
    if found.accuracy:
        blocks.append(
            Table(
                "Accuracy of every executor after t steps",
                ("executor", *(step(t) for t in range(1, found.timesteps + 1))),
                tuple(
                    (backend_name(name), *(percent(share) for share in shares))
                    for name, shares in found.accuracy.items()
                ),
                "l" + "r" * found.timesteps,
            )
        )
    return tuple(blocks)


def _verdict_row(backend: BackendResult, samples: int) -> tuple[str, ...]:
    mark = "✓" if backend.verdict in PASSING else "✗"
    verdict = f"{mark} {backend.verdict}: {VERDICTS[backend.verdict]}"
    if not backend.layers:
        return (backend_name(backend.name), verdict, *["–"] * 4)
    return (
        backend_name(backend.name),
        verdict,
        f"{backend.flips:,}",
        f"{backend.neuron_steps:,}",
        f"{backend.seeds:,}" if backend.judged else "–",
        f"{backend.argmax_differences:,} of {samples:,}",
    )


def _static(found: ValidationResult) -> tuple[Block, ...]:
    heading = Heading("Static check")
    of_student = found.reference == "the student"
    if found.static.identical:
        own = "a fresh export" if of_student else "the reference"
        text = Text(f"The checked graph has the nodes, edges, parameters and time step of {own}.")
        return (heading, text)
    other = "is not a fresh export of the student" if of_student else "differs from the reference"
    note = Note(f"The checked graph {other}.", tone="caution")
    return (heading, note, Bullets("Differences:", tuple(found.static.differences)))


def _contradictions(found: ValidationResult) -> tuple[Block, ...]:
    if not found.contradictions:
        return ()
    note = Note("The file says of itself what is not so; the verdict is E3.", tone="caution")
    return (note, Bullets("It says:", tuple(found.contradictions)))


def _backend(backend: BackendResult, found: ValidationResult, key: str) -> tuple[Block, ...]:
    name = backend_name(backend.name)
    logits = backend.logits
    outside = f"{logits.outside_bound:,} outside what rounding explains"
    facts = [("finding", backend.reason), ("executed", backend.source)]
    if backend.layers:
        size = f"largest difference {logits.max_abs_difference:.3g}; {outside}"
        facts.append(("logits", size))
    if backend.not_replayed:
        facts.append(("not replayed", backend.not_replayed))
    blocks: list[Block] = [Heading(name), Facts(tuple(facts))]
    if backend.remark:
        blocks.append(Note(f"Known beforehand: {backend.remark}"))
    if not backend.layers:
        blocks.append(Note("Nothing could be compared; the finding says why.", tone="caution"))
        return tuple(blocks)
    return (*blocks, *flip_blocks(backend, name, found.timesteps, key))


NETWORKS = (
    ("given", "the graph itself, on inputs that test images leave out"),
    (
        "dyadic twin",
        "the same topology with weights that float32 adds exactly, so that ties at the threshold "
        "are frequent and nothing is left to rounding",
    ),
    ("known by hand", "networks of a few neurons whose spikes are computed by hand"),
)
ALL = "all"


def _probes(found: ValidationResult) -> tuple[Block, ...]:
    if found.probes is None:
        return ()
    if not found.probes:
        return (Heading("Probes"), Note("No probe could be run."))
    named = dict.fromkeys(one.backend for one in found.probes if one.backend != ALL)
    columns = [*named] or [one.name for one in found.backends] or [ALL]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in found.probes:
        row = cells.setdefault((one.network, one.probe), {})
        row |= dict.fromkeys(columns if one.backend == ALL else [one.backend], _passed(one))
    rows = tuple(
        (f"{network}: {probe}", *(row.get(name, "–") for name in columns))
        for (network, probe), row in cells.items()
    )
    heads = ("network: input", *(backend_name(name) for name in columns))
    table = Table("Probes", heads, rows, "l" * len(heads))
    failed = tuple(one for one in found.probes if not one.passed)
    text = (
        "Inputs and networks made to show what test images may miss. A row with ✗ in one column "
        "alone is a rule that only this executor follows otherwise."
    )
    if any(not one.counts and one.passed is not None for one in failed):
        text += (
            " What is not the graph itself tells about the executor and has no say in the verdict."
        )
    blocks: list[Block] = [Heading("Probes"), Text(text), Facts(NETWORKS), table]
    if failed:
        blocks.append(
            Details(
                f"What went wrong in {len(failed)} of {len(found.probes)} probes",
                (_failures(failed),),
            )
        )
    return tuple(blocks)


def _passed(one: ProbeResult) -> str:
    if one.verdict is None:
        return "not run"
    return f"{'✓' if one.passed else '✗'} {one.verdict}"


def _failures(failed: tuple[ProbeResult, ...]) -> Table:
    rows = []
    for one in failed:
        said = "; ".join(found.text for found in one.diagnosis) or one.reason
        in_verdict = "yes" if one.counts else "no"
        probe = f"{one.network}: {one.probe}"
        rows.append((probe, backend_name(one.backend), f"{one.flips:,}", in_verdict, said))
    heads = ("network: input", "executor", "flips", "in the verdict", "finding")
    return Table("Probes that failed or could not be run", heads, tuple(rows), "llrll")

"""Sections on trust: is the exported graph the student, and how to make all this again."""

from __future__ import annotations

import shlex

from tser.deploy.report_blocks import (
    Block,
    Bullets,
    Code,
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
from tser.deploy.report_files import BackendResult, Divergence, ValidationResult
from tser.deploy.report_results import Commands, Results, age, missing

VERDICTS = {
    "E0": "every spike is the same",
    "E1": "equal up to certified rounding ties",
    "E2": "firing rates are equivalent, spikes are not",
    "E3": "not equivalent",
}
BACKENDS = {
    "torch": "PyTorch student",
    "nir-f32": "NIR, reference interpreter (float32)",
    "onnx": "ONNX Runtime",
}


def validation(results: Results) -> Section:
    """The student against its exported graphs, spike by spike."""
    title, found = "Validation of the exported graphs", results.validation
    if found is None:
        note = missing("Not checked yet", Commands(results.run).validate, results)
        return Section("validation", title, (note,))
    blocks: list[Block] = [
        *age(results.validation_is, "validation.json", Commands(results.run).validate),
        Text(
            f"Every spike of every layer and step is compared with that of the PyTorch student, on "
            f"{found.samples:,} test images of {found.data}, T = {found.timesteps}. The verdict, "
            f"{found.verdict}, is that of the worst executor."
        ),
        Facts(tuple(VERDICTS.items())),
        _overview(found),
        _accuracies(found),
        *_static(found, results),
        *_contradictions(found),
    ]
    for backend in found.backends:
        blocks += _backend(backend, found.timesteps)
    return Section("validation", title, tuple(blocks))


def _overview(found: ValidationResult) -> Table:
    return Table(
        "Verdicts. Seeds are flips that are not the consequence of an earlier one",
        ("executor", "verdict", "flips", "of neuron-steps", "seeds", "predictions that differ"),
        tuple(
            (
                BACKENDS.get(backend.name, backend.name),
                f"{backend.verdict}: {VERDICTS[backend.verdict]}",
                f"{backend.flips:,}",
                f"{backend.neuron_steps:,}",
                f"{backend.seeds:,}",
                f"{backend.argmax_differences:,} of {found.samples:,}",
            )
            for backend in found.backends
        ),
        "llrrrr",
    )


def _accuracies(found: ValidationResult) -> Table:
    return Table(
        "Accuracy of every executor after t steps",
        ("executor", *(step(t) for t in range(1, found.timesteps + 1))),
        tuple(
            (BACKENDS.get(name, name), *(percent(share) for share in shares))
            for name, shares in found.accuracy.items()
        ),
        "l" + "r" * found.timesteps,
    )


def _static(found: ValidationResult, results: Results) -> tuple[Block, ...]:
    heading = Heading("Static check")
    if found.static.identical:
        text = Text(
            "The checked graph has the nodes, edges, parameters and time step of a fresh export."
        )
        return (heading, text)
    note = Note("The checked graph is not a fresh export of the student.", tone="caution")
    return (heading, note, Bullets("Differences:", tuple(found.static.differences)))


def _contradictions(found: ValidationResult) -> tuple[Block, ...]:
    if not found.contradictions:
        return ()
    note = Note("The file says of itself what is not so; the verdict is E3.", tone="caution")
    return (note, Bullets("It says:", tuple(found.contradictions)))


def _backend(backend: BackendResult, timesteps: int) -> tuple[Block, ...]:
    logits = backend.logits
    outside = f"{logits.outside_bound:,} outside what rounding explains"
    facts = Facts(
        (
            ("finding", backend.reason),
            ("executed", backend.source),
            ("logits", f"largest difference {logits.max_abs_difference:.3g}; {outside}"),
            ("first divergence", _divergence(backend.first_divergence)),
        )
    )
    table = Table(
        f"Flips per layer and step: {BACKENDS.get(backend.name, backend.name)}",
        (
            "layer",
            "neurons",
            *(step(t) for t in range(1, timesteps + 1)),
            "seeds",
            "not explained",
        ),
        tuple(
            (
                layer.name,
                f"{layer.neurons:,}",
                *(f"{flips:,}" for flips in layer.flips),
                f"{layer.seeds:,}",
                f"{layer.violations:,}",
            )
            for layer in backend.layers
        ),
        "lr" + "r" * timesteps + "rr",
    )
    shown = table if backend.flips else Details("Flips per layer and step: none", (table,))
    return (Heading(BACKENDS.get(backend.name, backend.name)), facts, shown)


def _divergence(found: Divergence | None) -> str:
    if found is None:
        return "none"
    where = ", ".join(map(str, found.neuron))
    did = "fired" if found.reference else "did not fire"
    text = (
        f"test image {found.sample}, layer {found.layer}, neuron ({where}), {step(found.t + 1)}"
        f"; the student {did}"
    )
    if found.v_minus_threshold is not None:
        text += f", v − v_th = {found.v_minus_threshold:.3g}"
        if found.bound is not None:
            text += f" with a rounding bound of ±{found.bound:.3g}"
    return f"{text} (images and neurons are counted from 0, steps from 1)"


def reproduce(results: Results) -> Section:
    """Environment, commands and configuration."""
    blocks: list[Block] = []
    found = results.environment
    if found is None:
        blocks.append(Note("There is no record of the environment (environment.json)."))
    else:
        blocks.append(Code("This command made the run", shlex.join(found.command)))
    blocks.append(Code("These make what follows from it", "\n".join(_commands(results))))
    if results.digest is not None:
        blocks.append(Facts((("model.nir", f"sha256 {results.digest}"),)))
    if found is not None:
        cpus = "" if found.cpus is None else f", {found.cpus} CPUs"
        rows = [
            ("Python", found.python),
            ("platform", found.platform),
            ("processor", f"{found.processor}{cpus}"),
            *((name, version or "not installed") for name, version in found.packages.items()),
        ]
        blocks.append(Table("Environment of the training", ("", "version"), tuple(rows), "ll"))
    blocks.append(Code("config.toml: every value of the run", results.config_text))
    return Section("reproduce", "Reproduce", tuple(blocks))


def _commands(results: Results) -> list[str]:
    """What to type after the training, with the settings of the files that are there."""
    commands = Commands(results.run)
    validate, energy = commands.validate, commands.energy
    if results.validation is not None:
        validate += f" --samples {results.validation.samples}"
    if results.energy is not None:
        energy += f" --samples {results.energy.samples}"
        energy += "".join(f" --target {shlex.quote(t.name)}" for t in results.energy.targets)
        energy += " --first-layer host" if results.energy.first_layer == "host" else ""
    return [
        commands.evaluate,
        commands.export_nir,
        commands.export_onnx,
        validate,
        energy,
        commands.report,
    ]

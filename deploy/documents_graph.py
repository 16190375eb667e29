"""What commands print about a graph with ``--json``, as typed models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from tser.deploy.report_files import Count, Document, Part, Share, omittable

Size = Annotated[int, Field(ge=1)]
Manifest = Literal["ok", "absent", "wrong"]


# --- tser export -----------------------------------------------------------------------------


class Float16Effect(Part):
    """What float16 weights change against float32 weights."""

    inputs: str
    """What both were run on."""
    samples: Count
    """How many."""
    neuron_steps: Count
    """Neurons times steps times samples."""
    spikes: Count
    """With float32 weights."""
    flips: Count
    """Spikes that differ."""
    changed_predictions: Count
    """Samples that are predicted otherwise."""


class ExportDocument(Document):
    """What ``tser export --json`` prints."""

    schema_version: Literal[1]
    file: str
    """That was written."""
    format: Literal["nir", "onnx"]
    """Of the file."""
    nodes: Count
    """Of the graph."""
    dt_seconds: float | None
    """Time step [s]; null: the graph needs none."""
    timesteps: Size | None
    """T; null: not stated."""
    graph_digest: str | None
    """SHA-256 of the NIR graph's content."""
    gain: Literal["physical", "unit"]
    """Convention of r."""
    check: Literal["E0", "E1", "E2", "E3"] | None
    """Verdict on a few images; null: none were compared."""
    opset: Size | None = omittable()
    """Of an ONNX file."""
    form: Literal["sequence", "step", "scan"] | None = omittable()
    """Of an ONNX file: how it treats time."""
    outputs: list[Literal["logits", "spikes", "membranes"]] | None = omittable()
    """Of an ONNX file."""
    weights: Literal["float32", "float16"] | None = omittable()
    """Of an ONNX file."""
    float16_effect: Float16Effect | None = omittable()
    """Of an ONNX file; null: its weights are float32."""


# --- tser inspect ----------------------------------------------------------------------------


class InspectedNode(Part):
    """One node of a NIR graph; sizes are of one sample."""

    name: str
    """Nodes of graphs inside are named GRAPH.NODE."""
    type: str
    """Class in NIR."""
    inputs: list[str]
    """Nodes that it adds up."""
    input_shape: list[Count]
    """Without time and batch."""
    output_shape: list[Count]
    """Without time and batch."""
    neurons: Count
    """How many."""
    synapses: Count
    """Connections into it, those to padding left out."""
    synapses_effective: Count
    """Those of a weight that is not 0."""
    parameters: Count
    """Weights, biases and scales stored."""
    constants: dict[str, list[float | str]]
    """Lowest and highest value of each constant of its neurons; a text where not finite."""


class InspectedTotals(Part):
    """Sums over nodes."""

    nodes: Count
    """How many."""
    neurons: Count
    """How many."""
    synapses: Count
    """As of a node."""
    synapses_effective: Count
    """As of a node."""
    parameters: Count
    """As of a node."""


class UncountedSynapse(Part):
    """A connection whose size is not known."""

    name: str
    """Of the node."""
    reason: str
    """In words."""


class Cycle(Part):
    """An edge that carries values of the step before."""

    source: str
    """Node."""
    target: str
    """Node."""


class BrokenRule(Part):
    """A rule of the portable profile that is not kept."""

    rule: str
    """Name."""
    says: str
    """In words."""
    nodes: list[str]
    """That break it."""


class Portable(Part):
    """Conformance to the portable profile, see docs/interop.md."""

    conforms: bool
    """Whether every rule is kept."""
    violations: list[BrokenRule]
    """Of the others."""


class ImporterVerdict(Part):
    """What a tool would make of the file."""

    name: str
    """Of the tool."""
    version: str
    """That this was found with."""
    call: str
    """How it reads the file."""
    verdict: Literal["correct", "differs", "fails", "unknown"]
    """What comes of it."""
    reasons: list[str]
    """In words."""


class InspectedNir(Document):
    """A ``.nir`` file."""

    schema_version: Literal[1]
    file: str
    """As it was named."""
    format: Literal["nir"]
    """Of the file."""
    manifest: Manifest
    """Whether its content is what its SHA-256 says; absent: it states none."""
    sha256: str | None
    """As stated."""
    producer: str | None
    """As stated."""
    dt_seconds: float | None
    """Time step [s]; null: not stated, or not needed."""
    dt_origin: Literal["metadata", "option", "missing", "not needed"]
    """What says so."""
    timesteps: Size | None
    """T, as stated."""
    encoding: str | None
    """As stated: direct, one image for all steps; sequence, an input a step."""
    nodes: list[InspectedNode]
    """In execution order."""
    totals: InspectedTotals
    """Over all nodes."""
    uncounted: list[UncountedSynapse]
    """Whose connections are in no sum."""
    nested: list[str]
    """Graphs inside."""
    cycles: list[Cycle]
    """One-step delays that cut cycles."""
    portable: Portable
    """Conformance."""
    importers: list[ImporterVerdict]
    """By tool."""
    problem: str
    """Why other commands refuse the file, exit code 4; empty: they do not."""


class Port(Part):
    """An input or output of an ONNX model."""

    name: str
    """Of the tensor."""
    type: str
    """Of its elements."""
    shape: list[int | str] | None
    """A text is a size that is free; null: any shape."""


class InspectedOnnx(Document):
    """A ``.onnx`` file."""

    schema_version: Literal[1]
    file: str
    """As it was named."""
    format: Literal["onnx"]
    """Of the file."""
    ours: bool
    """Whether tser wrote it."""
    manifest: Manifest
    """Whether its content is what its SHA-256 says; absent: it states none."""
    producer: str
    """As stated."""
    opsets: dict[str, int]
    """Versions by domain."""
    ir_version: int
    """Of the ONNX format."""
    inputs: list[Port]
    """Without stored weights."""
    outputs: list[Port]
    """In their order."""
    operators: dict[str, Count]
    """How often each occurs, bodies of loops included."""
    constants: Count
    """Values stored."""
    neurons: Count | None
    """Spiking ones; null: not known."""
    metadata: dict[str, str]
    """As stated."""
    problem: str
    """Why other commands refuse the file, exit code 4; empty: they do not."""


class InspectDocument(RootModel[InspectedNir | InspectedOnnx]):
    """What ``tser inspect --json`` prints."""


# --- tser run --------------------------------------------------------------------------------


class RunDocument(Document):
    """What ``tser run --json`` prints."""

    schema_version: Literal[1]
    graph: str
    """The file that ran."""
    runtime: Literal["nir", "onnx"]
    """What ran it."""
    input: str
    """In words."""
    samples: Count
    """How many."""
    timesteps: Size
    """T."""
    output_shape: list[Count]
    """Without time and batch."""
    predictions: list[Count] | None
    """Class of each sample after all steps, from 0; null: the output is no list of classes."""
    class_names: list[str] | None
    """By class; null: not stated."""
    accuracy: list[Share] | None
    """Share of right answers after step 1..T; null: no labels."""
    firing_rates: dict[str, Share] | None
    """Spikes a neuron and step, by layer; null: no --trace."""
    out: str | None
    """File that was written; null: none."""
    trace: str | None
    """File that was written; null: none."""

"""Compile a NIR graph to ONNX, and read ONNX files without trusting them.

What does not depend on time is computed once. Tensors are named after the NIR nodes that make
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx
from onnx import helper

from tser import __version__
from tser.errors import InputFileError, UsageError
from tser.export.graph import Graph
from tser.export.nir_file import Manifest
from tser.export.onnx_digest import damage, manifest, sign
from tser.export.onnx_external import (
    check_sizes,
    data_files,
    embed,
    external,
    fill,
    remove_weights,
    too_large,
    write_external,
)
from tser.export.onnx_forms import FORMS, Encoding, Form, Job
from tser.export.onnx_steps import Extra
from tser.files import atomic_path, scratch
from tser.plain_files import check_plain

OPSET = 18
"""Split with num_outputs needs 18; ONNX Runtime has it since 1.14."""
IR_VERSION = 8

Weights = Literal["float32", "float16"]


@dataclass(frozen=True)
class OnnxOptions:
    """How to write a graph in ONNX.

    Attributes:
        form: "sequence" is unrolled over a fixed T, "step" is one time step with its states as
            inputs and outputs, "scan" loops over any T.
        outputs: kinds of outputs for each layer beside the logits.
        weights: how the weights and biases of synapses are stored; the arithmetic is float32.
    """

    form: Form = "sequence"
    outputs: tuple[Extra, ...] = ()
    weights: Weights = "float32"


_PLAIN = OnnxOptions()


def compile_onnx(
    graph: Graph,
    timesteps: int | None = None,
    encoding: Encoding | None = None,
    options: OnnxOptions = _PLAIN,
) -> onnx.ModelProto:
    """Compile a NIR graph to an ONNX model.

    Args:
        graph: the resolved view.
        timesteps: T; default: what the graph states. Only the sequence form has to know it.
        encoding: "direct" takes ``[B, *input_shape]`` and repeats it over T, "sequence" takes
            ``[T, B, *input_shape]``; None: what the graph states, else "direct". A step takes
            ``[B, *input_shape]`` in either.
        options: form, further outputs, and how weights are stored.

    Returns:
        A model from ``input`` to ``logits`` ``[T, B, *output_shape]``, of a step
        ``[B, *output_shape]``; B is dynamic. The output of a NIR node at step t (from 0) is the
        tensor ``<name>.t<t>``, ``[B, ...]``, as `step_names` says, in the other forms
        ``<name>.t``; where nothing depends on time it is one tensor ``<name>``.

    Raises:
        ExportError: a node without ONNX form, a T that is not known, or weights beyond float16.
        UsageError: T < 1, or "direct" for a graph that takes a frame for each step.
    """
    frames = graph.metadata.get("encoding") == "frames"
    if frames and encoding == "direct":
        raise UsageError(
            "the graph takes a frame for each step, so its input cannot be one image; "
            "use --encoding sequence"
        )
    if encoding is None:
        encoding = "sequence" if frames else "direct"
    steps = graph.timesteps if timesteps is None else timesteps
    if steps is not None and steps < 1:
        raise UsageError(f"the number of time steps must be at least 1, got {steps}")
    half = options.weights == "float16"
    compiled = FORMS[options.form](Job(graph, steps, encoding, options.outputs, half))
    model = helper.make_model(
        compiled.graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tser",
        producer_version=__version__,
    )
    metadata = {
        "form": options.form,
        **{key: value for key, value in graph.metadata.items() if key != "sha256"},
        "nir_sha256": graph.metadata.get("sha256", ""),
        "dt": graph.dt,
        "encoding": encoding,
        "opset": OPSET,
        "outputs": ",".join(options.outputs),
        "weights": options.weights,
        "layers": json.dumps({node.name: list(node.output_shape) for node in graph.spiking}),
    }
    if steps is not None:
        metadata["timesteps"] = steps
    if options.form == "step":
        metadata["states"] = json.dumps(
            [
                {
                    "input": carry.name,
                    "output": f"{carry.name}.next",
                    "shape": list(carry.shape),
                    "initial": carry.initial.tolist(),
                }
                for carry in compiled.states
            ]
        )
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    fill(model, compiled.contents)
    if not too_large(model):  # it is checked where it is written
        onnx.checker.check_model(model, full_check=True)
    return model


def options_of(model: onnx.ModelProto) -> OnnxOptions:
    """The options that a model of ours says it was compiled with; others are the defaults."""
    stated = model_metadata(model)
    outputs = tuple(
        part for part in get_args(Extra) if part in stated.get("outputs", "").split(",")
    )
    form = next((one for one in get_args(Form) if one == stated.get("form")), _PLAIN.form)
    weights = next((w for w in get_args(Weights) if w == stated.get("weights")), _PLAIN.weights)
    return OnnxOptions(form, outputs, weights)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``, whole or not at all, with its digest in the metadata.

    The model's metadata gain the key ``sha256``. Over 2 GB its weights go to a file
    beside it.

    Raises:
        UsageError: the folder cannot be written, or ``path`` is a folder.
    """
    sign(model)
    if too_large(model):
        write_external(model, path)
        return
    with atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
    remove_weights(path)


def weights_file(path: Path) -> Path | None:
    """The file beside the model at ``path`` that it has its weights in, as we name it."""
    found = {data.name: data for data in data_files(path)}
    if not (found and path.is_file()):
        return None
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - protobuf raises many types; such a file names nothing
        return None
    entries = (entry for tensor in external(model) for entry in tensor.external_data)
    stated = (entry.value for entry in entries if entry.key == "location")
    return next((found[name] for name in stated if name in found), None)


@contextmanager
def session_source(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """What a runtime can load ``model`` from, until the block ends.

    The model's bytes; over 2 GB, which bytes cannot be, the path of a file in a temporary folder.
    """
    if not too_large(model):
        yield model.SerializeToString()
        return
    with scratch() as folder:
        path = folder / "model.onnx"
        write_external(model, path)
        yield str(path)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ``.onnx`` file, and the weights that it keeps in a file beside it.

    Raises:
        InputFileError: missing, damaged, not ONNX, with data that are not beside it, or one of
            ours that is not what its digest says.
    """
    model, state = read_unverified(path)
    if state == "wrong":
        raise InputFileError(damage(path, model))
    return model


def read_unverified(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """Read an ``.onnx`` file whose digest may be wrong, which the caller then has to say.

    Returns:
        The model, and whether it is what its digest says: "absent" where the file has none, as
        those of other tools.

    Raises:
        InputFileError: missing, damaged, not ONNX, or with data that are not beside it.
    """
    check_plain(path)
    try:
        model = onnx.load_model(path, load_external_data=False)
        embed(model, path)
        state = manifest(model)
        try:
            check_sizes(model)
            onnx.checker.check_model(str(path) if too_large(model) else model)
        except Exception as error:
            if state == "wrong":  # that is the cause
                raise InputFileError(damage(path, model)) from error
            raise
    except InputFileError:
        raise
    except FileNotFoundError as error:
        raise InputFileError(f"there is no file {path}") from error
    except Exception as error:  # protobuf and the checker raise many types
        reason = " ".join(str(error).split())[:160]
        raise InputFileError(f"{path} is not a valid ONNX model: {reason}") from error
    return model, state


def model_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Key-value metadata of a model."""
    return {prop.key: prop.value for prop in model.metadata_props}

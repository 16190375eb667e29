"""Lower a model with a ``forward`` of its own: follow its values through what torch.fx recorded.

The recording holds all T steps, one after the other. The first step makes the NIR nodes; later
steps must do the same with the same layers, and hand every layer of neurons the state of the step
before. Anything else would be another network than the graph.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import nir
import torch
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from tser.export.fx_factors import SCALING, scale, scale_path, scaled
from tser.export.fx_functions import (
    INERT,
    PARTS_OF_A_LAYER,
    REARRANGING,
    as_layer,
    callable_of,
    check_in_place,
    drops_at_random,
    is_global_mean,
    name_of,
    path_of,
    real_users,
    why_no_function,
)
from tser.export.fx_trace import BATCH, Recording, drop_unused, is_neuron, record
from tser.export.fx_values import (
    Constant,
    Form,
    Move,
    State,
    Value,
    in_words,
    leaves,
    moved,
    part_of,
    rebuilt,
    values_in,
)
from tser.export.layer_rules import (
    NORMS,
    WITHOUT_EFFECT,
    Builder,
    ExportError,
    Place,
    add_up,
    flattened,
    neuron_rule,
    rule_for,
    why_not,
)
from tser.neurons import LIF
from tser.user_models import UserStudent

_RECURRENCE = (
    "for recurrence, use norse.torch.LIFRecurrentCell, for a running sum or mean norse.torch.LICell"
)


def lower_traced(student: UserStudent, start: Place, builder: Builder) -> Place:
    """Add the nodes of the student's model to ``builder``.

    Args:
        student: in eval mode.
        start: the input.
        builder: the graph so far.

    Returns:
        The logits.

    Raises:
        ExportError: something that NIR cannot express, by layer and line of code.
    """
    builder.root = "model."
    recording = record(student)
    drop_unused(recording)
    return _Lowering(recording, student.form, start, builder).run()


class _Lowering:
    def __init__(self, recording: Recording, form: str, start: Place, builder: Builder) -> None:
        self._graph, self._root = recording.graph, recording.root
        self._steps, self._builder = recording.steps, builder
        self._form, self._start = form, start
        self._known: dict[Any, Place] = {}
        self._uses: Counter[str] = Counter()
        self._neurons: dict[str, tuple[Place, Place]] = {}
        self._done: Counter[str] = Counter()
        self._folded: set[fx.Node] = set()
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> Place:
        for node in self._graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), self._values.__getitem__)
            if node.op == "output":
                return self._output(args[0])
            self._values[node] = self._node(node, args, kwargs)
        raise ExportError("the model returns nothing")

    def _node(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        match node.op:
            case "placeholder":
                static = self._form == "static"
                return Value(
                    self._start, "step" if static else "sequence", None if static else "all"
                )
            case "get_attr":
                value = operator.attrgetter(str(node.target))(self._root)
                return Constant(value, str(node.target)) if isinstance(value, Tensor) else value
            case "call_module":
                return self._module(node, args, kwargs)
        return self._function(node, args, kwargs)

    def _output(self, result: Any) -> Place:
        values = values_in(result)
        if isinstance(result, tuple | list):
            result = result[0]
        if len(values) > 1:
            raise ExportError(
                f"the model returns {len(values)} outputs, and a NIR graph has one; return the "
                "logits only"
            )
        if not isinstance(result, Value) or result.form == "folded":
            raise ExportError("the model returns something else than logits [T, B, K] of layers")
        return result.place

    # --- layers ------------------------------------------------------------------------------

    def _module(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        path = str(node.target)
        layer = self._root.get_submodule(path)
        path = path.removeprefix("model.")
        site = f"layer {path!r} ({type(layer).__name__})"
        value = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(value, Value):
            raise ExportError(
                f"{node.meta['site']} is given {in_words(value)}, not what a layer put out; put a "
                "constant current into the bias of a layer"
            )
        if is_neuron(layer):
            name = "timesteps" if isinstance(layer, LIF) else "state"
            state = args[1] if len(args) > 1 else kwargs.get(name)
            return self._neuron(layer, path, value, state)
        if type(layer) in WITHOUT_EFFECT:
            return value
        if type(layer) in NORMS:
            before = [type(self._builder.nodes[name]) for name in value.place.sources]
            in_place = before in ([nir.Conv2d], [nir.Affine]) and value.form in ("step", "folded")
            if node in self._folded and in_place:
                return value
            raise ExportError(
                f"layer {path!r} (batch norm) does not follow a convolution or linear layer that "
                "goes nowhere else, into which it could be folded; put it right after one"
            )
        if isinstance(layer, nn.Flatten | nn.Unflatten):
            return self._rearranged(layer.forward, (value,), {}, path, site)
        return self._layer(node, layer, path, site, value)

    def _layer(
        self, node: fx.Node, layer: nn.Module, path: str, site: str, value: Value, which: str = ""
    ) -> Value:
        rule = rule_for(layer)
        if rule is None:
            raise ExportError(f"{site} cannot be exported: {why_not(layer)}")
        if value.form not in ("step", "folded") and not isinstance(layer, nn.Linear):
            raise ExportError(f"{site} is given a sequence [T, B, ...]; fold T into the batch")
        weighted = isinstance(layer, nn.Conv2d | nn.Linear)
        norm, norm_path = self._following_norm(node, layer) if weighted else (None, "")
        key = (path, which, norm_path, value.place.sources)

        def build(name: str) -> Place:
            return rule(layer, name, value.place, self._builder, norm)

        return replace(value, place=self._once(key, path, site, value, build))

    def _following_norm(self, node: fx.Node, layer: Any) -> tuple[nn.Module | None, str]:
        """The batch norm that is all that follows ``node``, to be folded into it."""
        users = real_users(node)
        if not all(user.op == "call_module" for user in users):
            return None, ""
        paths = {str(user.target) for user in users}
        norm: Any = self._root.get_submodule(min(paths)) if len(paths) == 1 else None
        if type(norm) not in NORMS or norm.num_features != len(layer.weight):
            return None, ""
        self._folded.update(users)
        return norm, min(paths)

    def _once(self, key: Any, path: str, site: str, value: Value, build: Any) -> Place:
        """The nodes of a layer that is given ``value``: new in the first step, then known."""
        if key not in self._known:
            if value.time not in (None, 0, "all"):
                raise ExportError(
                    f"{site} is given something else in step {int(value.time) + 1} than in the "
                    "first; a NIR graph does the same at every step"
                )
            self._uses[path] += 1
            number = self._uses[path]
            self._known[key] = build(path if number == 1 else f"{path}_{number}")
        return self._known[key]

    def _neuron(self, layer: nn.Module, path: str, value: Value, state: Any) -> Any:
        site = f"layer {path!r} ({type(layer).__name__})"
        over_time = isinstance(layer, LIF | SNN | SNNRecurrent)
        wanted: tuple[Form, ...] = ("one", "sequence") if over_time else ("step",)
        if value.form not in wanted:
            shape = "[T, B, ...]" if over_time else "[B, ...] of one step"
            raise ExportError(f"{site} takes {shape}; it is given another shape")
        if isinstance(layer, LIF):
            if state != self._steps:
                raise ExportError(f"{site} runs {state} steps, not T = {self._steps}")
            state = None
        step = 0
        if isinstance(state, State):
            if state.path != path or state.part is not None:
                raise ExportError(
                    f"{site} is given the state of layer {state.path!r}; give each layer its own"
                )
            step = state.step + 1
        elif state is not None:
            self._check_start(layer, site, value, state)
        if step != self._done[path]:
            raise ExportError(
                f"{site} is called again with an earlier state; call it once in each step, with "
                "the state that it returned in the step before"
            )
        if not over_time and value.time not in (None, step):
            raise ExportError(
                f"{site} is given, in its step {step + 1}, what belongs to another step; "
                f"{_RECURRENCE}"
            )
        self._done[path] += 1
        if path not in self._neurons:
            after = neuron_rule(layer, path, value.place, self._builder, None)
            self._neurons[path] = value.place, after
        before, after = self._neurons[path]
        if before.sources != value.place.sources:
            raise ExportError(
                f"{site} is given something else in step {step + 1} than in the first; a NIR graph "
                "does the same at every step"
            )
        if isinstance(layer, LIF):
            return Value(after, "sequence", "all")
        result = Value(after, "sequence", "all") if over_time else Value(after, "step", step)
        return result, State(path, step)

    def _check_start(self, layer: Any, site: str, value: Value, state: Any) -> None:
        """A state that the model itself starts from must be the one that every executor has."""
        lead = (BATCH,) if value.form == "step" else (self._steps, BATCH)
        usual = layer.state_fallback(torch.zeros(*lead, *value.place.shape))
        parts = state if isinstance(state, tuple) else ()
        same = len(parts) == len(usual) and all(
            isinstance(part, Constant) and bool((part.value.to(own) == own).all())
            for part, own in zip(parts, usual, strict=True)
        )
        if not same:
            raise ExportError(
                f"{site} starts from a state of the model's own; start from None, which is the "
                "resting state (set states that are kept in attributes to None in forward)"
            )

    # --- functions ---------------------------------------------------------------------------

    def _function(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        name, site = name_of(node), str(node.meta["site"])
        if isinstance(node.target, type) and hasattr(node.target, "_fields"):
            return rebuilt(args)
        if name == "getitem" and not isinstance(args[0], Value | Constant):
            return part_of(args[0], args[1], site)
        if name in ("zeros_like", "new_zeros"):
            return Constant(torch.zeros(()))
        if any(isinstance(value, State) for value in leaves((args, kwargs))):
            raise ExportError(
                f"{site} reads the state of neurons ({name}), which NIR does not give out; use "
                "what the layer returns, or LICell for a membrane without spikes"
            )
        if name in ("add", "iadd", "add_"):
            return self._sum(node, args, kwargs, site)
        if name == "stack":
            return self._stacked(args, kwargs, site)
        first = args[0] if args else kwargs.get("input")
        if name in (*INERT, *PARTS_OF_A_LAYER, *REARRANGING) and not isinstance(first, Value):
            raise ExportError(
                f"{site} cannot be exported: {name} is given {in_words(first)}, not what a layer "
                "put out"
            )
        if name in INERT:
            return first
        if name in PARTS_OF_A_LAYER:
            if drops_at_random(node, args, kwargs):
                raise ExportError(
                    f"{site} drops at random even in eval mode ({name}); pass "
                    "training=self.training"
                )
            found = as_layer(name, args, kwargs, node, site)
            if found is None:
                return first
            return self._layer(node, found.layer, found.path, f"{site} {name}", first, found.key)
        if name in SCALING:
            value, factor = scaled(node, args, kwargs, site)
            key, builder = ("scale", factor.tobytes(), value.place.sources), self._builder
            build = partial(scale, place=value.place, factor=factor, builder=builder)
            return replace(value, place=self._once(key, scale_path(node), site, value, build))
        if is_global_mean(node, name, args, kwargs):
            return self._global_mean(node, args, kwargs, site)
        if name in REARRANGING and args:
            path = path_of(node, name)
            return self._rearranged(callable_of(node), args, kwargs, path, site)
        raise ExportError(f"{site} cannot be exported: {why_no_function(name)}")

    def _sum(self, node: fx.Node, args: Any, kwargs: Any, site: str) -> Value:
        name = name_of(node)
        values = [value for value in args if isinstance(value, Value)]
        if len(values) == 1 and any(isinstance(v, int | float) and v == 0 for v in args):
            return values[0]  # where a sum over several values starts
        if len(values) != 2 or len(args) != 2 or kwargs.get("alpha", 1) != 1:
            raise ExportError(
                f"{site} cannot be exported: it adds something else than what two layers put out; "
                "put a constant into the bias of a layer"
            )
        if name != "add":
            check_in_place(node, self._root, site)
        if values[0].form != values[1].form:
            raise ExportError(f"{site} adds values of different shapes; broadcast none")
        times = {value.time for value in values} - {None}
        if len(times) > 1:
            raise ExportError(f"{site} adds values of different steps; {_RECURRENCE}")
        place = add_up([value.place for value in values], site)
        return Value(place, values[0].form, next(iter(times), None))

    def _stacked(self, args: Any, kwargs: Any, site: str) -> Value:
        parts = list(args[0])
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        steps = all(isinstance(part, Value) and part.form == "step" for part in parts)
        if dim != 0 or not steps or len(parts) != self._steps:
            raise ExportError(f"{site} stacks something else than one value a step, T first")
        if len({part.place.sources for part in parts}) > 1:
            raise ExportError(
                f"{site} stacks values of different layers; a NIR graph does the same at every step"
            )
        times = [part.time for part in parts]
        if all(time is None for time in times):
            return Value(parts[0].place, "sequence", None)
        if times != list(range(self._steps)):
            raise ExportError(
                f"{site} stacks steps in another order than that of time; append them as they come"
            )
        return Value(parts[0].place, "sequence", "all")

    def _global_mean(self, node: fx.Node, args: Any, kwargs: Any, site: str) -> Value:
        value: Value = args[0]
        path = path_of(node, "mean")
        pooled = self._layer(node, nn.AdaptiveAvgPool2d(1), path, site, value)
        if args[2] if len(args) > 2 else kwargs.get("keepdim", False):
            return pooled
        key = ("flatten", pooled.place.sources)
        name = f"{path}.flatten"
        place = self._once(
            key, name, site, pooled, lambda free: flattened(free, pooled.place, self._builder)
        )
        return replace(pooled, place=place)

    def _rearranged(self, function: Any, args: Any, kwargs: Any, path: str, site: str) -> Any:
        """What became of a tensor whose numbers were only moved."""
        value: Value = args[0]
        found = moved(function, args, kwargs, self._steps)
        results = tuple(self._moved(value, move, path, site) for move in found.moves)
        return results if found.several else results[0]

    def _moved(self, value: Value, move: Move | None, path: str, site: str) -> Value:
        if move is None:
            raise ExportError(
                f"{site} cannot be exported: it moves the values of a tensor in another way than "
                "flattening all of (C, H, W), or folding T into the batch and back"
            )
        result = replace(value, form=move.form, time=move.time)
        if not move.flat:
            return result
        key = ("flatten", value.place.sources)

        def build(name: str) -> Place:
            return flattened(name, value.place, self._builder)

        return replace(result, place=self._once(key, path, site, result, build))

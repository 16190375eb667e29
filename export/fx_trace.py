"""Record what a user's own ``forward`` does, as a graph of torch.fx.

Beside what torch.fx records, every value knows its shape while the model runs, so that code which
asks for shapes, loops over time or unpacks what a layer returned can be followed. Code that asks
for *values* cannot, and is refused.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from norse.torch.module.lift import Lift
from norse.torch.module.sequential import RecurrentSequential, SequentialState
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_arg

from tser.errors import TserError
from tser.export.fx_functions import is_in_place, name_of
from tser.export.layer_rules import ExportError, why_not
from tser.export.norse_cells import is_cell
from tser.neurons import LIF
from tser.user_models import UserStudent

BATCH = 3
"""Images that a model is followed with."""
STEPS = 16
"""Most steps for which a model that is called step by step is followed; one that does something
else only later than that is beyond it."""
_OWN = ("torch", "norse", "tser", "beartype", "jaxtyping")
_VALUES = ("item", "tolist", "numpy", "nonzero", "any", "all", "allclose", "equal")


class Recording:
    """What a model did with one batch.

    Attributes:
        graph: of torch.fx; every node's ``meta`` holds ``example``, a tensor of the shape that it
            had (or a structure of such), and ``site``, where in the user's code it is.
        root: holds the model as ``model``, so that paths in the graph are those in the student.
        steps: how many steps the model ran.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, steps: int) -> None:
        self.graph, self.root, self.steps = graph, root, steps


class _Followed(nn.Module):
    """A user's model as it is called for one batch; see `UserStudent`."""

    def __init__(self, student: UserStudent, steps: int) -> None:
        super().__init__()
        self.model, self.form, self.steps = student.model, student.form, steps

    def forward(self, x: Any) -> Any:
        if self.form != "step":
            return self.model(x)
        state, outputs = None, []
        for t in range(self.steps):
            out, state = self.model(x[t], state)
            outputs.append(out)
        return torch.stack(outputs)


def record(student: UserStudent) -> Recording:
    """Follow the student's model through one batch.

    Raises:
        ExportError: it does something that depends on values, or that torch.fx cannot follow.
    """
    steps = min(STEPS, student.timesteps) if student.form == "step" else student.timesteps
    root = _Followed(student, steps).train(student.model.training)
    lead = (BATCH,) if student.form == "static" else (steps, BATCH)
    tracer = _Tracer(torch.empty(*lead, *student.input_shape, device="meta"))
    with _undone(student.model), torch.no_grad():
        try:
            graph = tracer.trace(root)
        except TserError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise ExportError(
                f"{tracer.site(error)} cannot be followed ({type(error).__name__}: {text}); "
                f"{_remedy(student.model)}"
            ) from error
        for node in graph.nodes:
            tracer.example(node)
    return Recording(graph, root, steps)


def drop_unused(recording: Recording) -> None:
    """Forget what is not on the way to the output, but nothing that changes a tensor in place."""
    for node in reversed(list(recording.graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        in_place = node.kwargs.get("inplace") is True
        if node.op == "call_module":
            in_place = bool(getattr(recording.root.get_submodule(str(node.target)), "inplace", 0))
        elif node.op != "get_attr":
            in_place = in_place or is_in_place(name_of(node))
        if not in_place:
            recording.graph.erase_node(node)


_MODULE = frozenset(nn.Module().__dict__)


def _remedy(model: nn.Module) -> str:
    """What to do about code that cannot be followed; often a tensor of another call is in it."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not issubclass(type(value), fx.Proxy):
                name = f"{path}.{key}".lstrip(".")
                return f"{name!r} holds a tensor of an earlier call, set it to None in forward"
    return "write it with plain calls of layers and sums"


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Give every module the attributes back that it had: a model may keep its states in them."""
    before = {}
    for module in model.modules():
        own = {key: value for key, value in module.__dict__.items() if key not in _MODULE}
        before[module] = {
            key: copy.copy(value) if isinstance(value, list | dict) else value
            for key, value in own.items()
        }
    try:
        yield
    finally:
        for module, own in before.items():
            for key in [key for key in module.__dict__ if key not in _MODULE]:
                del module.__dict__[key]
            module.__dict__.update(own)


class _Traced(fx.Proxy):
    """A value of the model, of which the shape is known.

    To ``isinstance`` it is what it stands for: models, and the checks of their annotations, ask.
    """

    _is_param = False

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._example)

    @property
    def _example(self) -> Any:
        return self.node.meta["example"]

    def _about(self, name: str) -> Any:
        return getattr(self._example, name)

    shape = property(lambda self: self._about("shape"))
    ndim = property(lambda self: self._about("ndim"))
    dtype = property(lambda self: self._about("dtype"))
    is_sparse = property(lambda self: False)
    device = property(lambda self: torch.device("cpu"))

    def size(self, dim: int | None = None) -> Any:
        return self._example.size() if dim is None else self._example.size(dim)

    def dim(self) -> int:
        return int(self._example.dim())

    def numel(self) -> int:
        return int(self._example.numel())

    def __len__(self) -> int:
        return len(self._example)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self._example))])  # type: ignore[index]

    def _refuse(self, name: str) -> ExportError:
        return reads_values(self.tracer.site(), name)  # type: ignore[attr-defined]

    def __float__(self) -> float:
        raise self._refuse("float")

    def __int__(self) -> int:
        raise self._refuse("int")

    def __index__(self) -> int:
        raise self._refuse("as an index")

    def __complex__(self) -> complex:
        raise self._refuse("complex")

    @property
    def __array_struct__(self) -> Any:
        raise self._refuse("as an array of NumPy")

    def __contains__(self, _: Any) -> bool:
        raise self._refuse("in")

    def __iadd__(self, other: Any) -> Any:
        # torch.fx would take it for a sum, and lose that it changes what others may hold.
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


def reads_values(site: str, name: str) -> ExportError:
    """The refusal of code that asks for numbers."""
    return ExportError(
        f"{site} reads the values of a tensor ({name}), which NIR cannot express; do the same for "
        "all inputs"
    )


class _Tracer(fx.Tracer):
    """See the module.

    Args:
        x: shape of the model's input.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x = x
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):
            return False
        if is_neuron(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        home = type(m).__module__.partition(".")[0]
        if home == "norse":
            return not isinstance(m, SequentialState | Lift | RecurrentSequential)
        return home == "torch" and not isinstance(m, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        if isinstance(m, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell) and not is_neuron(m):
            path = self.path_of_module(m).removeprefix("model.")
            raise ExportError(
                f"layer {path!r} ({type(m).__name__}) cannot be exported: {why_not(m)}"
            )
        result = super().call_module(m, forward, args, kwargs)
        if is_neuron(m) and type(result) is _Traced and isinstance(result, tuple):
            # A state is what Norse makes of it, so that models may take it to pieces.
            state = result[1]
            return result[0], type(state._example)(*state)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _Traced else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["site"] = self.site()
        return node

    def proxy(self, node: fx.Node) -> _Traced:
        self.example(node)
        return _Traced(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter(obj)

    def to_bool(self, obj: Any) -> bool:
        if _is_storing(sys._getframe(1)):
            raise ExportError(
                f"{self.site()} keeps a value of the network in a buffer or parameter, which NIR "
                "cannot express; for a running mean use batch norm or norse.torch.LICell"
            )
        raise ExportError(
            f"{self.site()} decides by the values of a tensor, which NIR cannot express; "
            "do the same for all inputs"
        )

    def example(self, node: fx.Node) -> Any:
        """A tensor (or a structure of tensors) without content, of the node's shape."""
        if "example" not in node.meta:
            before, self._evaluating = self._evaluating, True
            try:
                node.meta["example"] = self._evaluate(node)
            finally:
                self._evaluating = before
        return node.meta["example"]

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), self.example)
        name = str(node.target)
        match node.op:
            case "placeholder":
                return self._x
            case "get_attr":
                value = operator.attrgetter(name)(self.root)
                return value.detach().to("meta") if isinstance(value, Tensor) else value
            case "call_method":
                if name in _VALUES:
                    raise reads_values(node.meta["site"], name)
                return getattr(args[0], name)(*args[1:], **kwargs)
            case "call_module":
                return _run_layer(self.root.get_submodule(name), args, kwargs)
            case "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
        return None

    def site(self, error: BaseException | None = None) -> str:
        """Where in the user's code the model stands, or ``error`` was raised, for messages."""
        stack = list(self.module_stack.values()) if hasattr(self, "module_stack") else []
        path, kind = stack[-1] if stack else ("", None)
        path = path.removeprefix("model").removeprefix(".")
        name = getattr(kind, "__name__", "model")
        where = f"layer {path!r} ({name})" if path else f"the model ({name})"
        frame = _users_frame(error)
        if frame is None:
            return where
        file, line = frame
        return f"{where}, line {line} of {Path(file).name},"


def is_neuron(module: nn.Module) -> bool:
    """Whether there is a rule for these neurons."""
    return type(module).forward is LIF.forward or is_cell(module)


def _run_layer(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    if is_neuron(layer):
        zeros = torch.zeros(args[0].shape)
        return _meta(layer(zeros, *args[1:]) if isinstance(layer, LIF) else layer(zeros))
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    empty = {name: value.detach().to("meta") for name, value in tensors.items()}
    return functional_call(layer, empty, args, kwargs)


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    parts = [_meta(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _users_frame(error: BaseException | None) -> tuple[str, int] | None:
    """File and line of the innermost code that is not ours or a library's."""
    found = None
    if error is not None:
        trace = error.__traceback__
        while trace is not None:
            if _is_users(trace.tb_frame):
                found = trace.tb_frame.f_code.co_filename, trace.tb_lineno
            trace = trace.tb_next
        return found
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            return frame.f_code.co_filename, frame.f_lineno
        if frame.f_code.co_name == record.__name__ and frame.f_globals is globals():
            break  # from here on it is the caller of `record`
        frame = frame.f_back
    return None


def _is_storing(frame: FrameType | None) -> bool:
    """Whether torch is setting an attribute of a module."""
    for _ in range(6):
        if frame is None or frame.f_code.co_name == "__setattr__":
            return frame is not None
        frame = frame.f_back
    return False


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    inside = str(frame.f_globals.get("__name__", "")).partition(".")[0] in _OWN
    return not inside and not file.startswith("<")

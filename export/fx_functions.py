"""Functions of torch that a user's ``forward`` may call, and the layers that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from tser.export.layer_rules import WITHOUT_EFFECT, ExportError

INERT = ("contiguous", "clone", "detach", "float", "alias")
"""They give what they are given."""
REARRANGING = (
    "flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze", "expand", "repeat",
    "permute", "transpose", "movedim", "getitem", "select", "unbind", "chunk", "split", "tile",
)  # fmt: skip
"""They move numbers without changing them."""
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
_POOLS = ("avg_pool2d", "adaptive_avg_pool2d", "max_pool2d")
_SYNAPSES = ("conv2d", "linear")
PARTS_OF_A_LAYER = (*_DROPOUTS, *_POOLS, *_SYNAPSES)
"""Functions that have a layer in torch.nn."""
_PARAMETERS = {
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                   "divisor_override"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode",
                   "return_indices"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "linear": ("input", "weight", "bias"),
}  # fmt: skip
_LAYERS = {
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "max_pool2d": nn.MaxPool2d,
}


def name_of(node: fx.Node) -> str:
    """Plain name of a function or method; max_pool2d has another one inside torch."""
    if node.op == "call_method":
        return str(node.target)
    name = str(getattr(node.target, "__name__", node.target))
    if name == "fn" and "max_pool2d" in node.name:
        return "max_pool2d"
    return "adaptive_avg_pool2d" if name == "_adaptive_avg_pool2d" else name


def drops_at_random(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether a dropout is one in eval mode too."""
    if name_of(node) not in _DROPOUTS:
        return False
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return bool(training) and rate > 0


@dataclass(frozen=True)
class Found:
    """The layer that a function is.

    Attributes:
        layer: with the function's arguments.
        path: for its node.
        key: tells it from others of the same path.
    """

    layer: nn.Module
    path: str
    key: str


def as_layer(name: str, args: Any, kwargs: Any, node: fx.Node, site: str) -> Found | None:
    """The layer that a function is; None where it does nothing.

    Raises:
        ExportError: weights that are no parameters of the model.
    """
    if name in _DROPOUTS:
        return None
    given = dict(zip(_PARAMETERS[name], args, strict=False)) | kwargs
    if name in _LAYERS:
        options = {key: value for key, value in given.items() if key != "input"}
        pool = _LAYERS[name](**options)
        return Found(pool, path_of(node, name), repr(pool))
    weight, bias = given["weight"], given.get("bias")
    path = str(getattr(weight, "name", ""))
    if not path or (bias is not None and not getattr(bias, "name", "")):
        raise ExportError(
            f"{site} cannot be exported: the weights of {name} are computed in forward; use a "
            "layer, or parameters as they are"
        )
    layer: nn.Linear | nn.Conv2d
    if name == "linear":
        layer = nn.Linear(1, 1, bias=False)
    else:
        layer = nn.Conv2d(1, 1, weight.value.shape[2:], bias=False)
        layer.stride = _pair(given.get("stride", 1))
        layer.dilation = _pair(given.get("dilation", 1))
        padding = given.get("padding", 0)
        layer.padding = padding if isinstance(padding, str) else _pair(padding)
        layer.groups = int(given.get("groups", 1))
    layer.weight = nn.Parameter(weight.value.detach())
    layer.bias = None if bias is None else nn.Parameter(bias.value.detach())
    which = f"{layer.extra_repr()} {getattr(bias, 'name', '')}"
    path = path.removeprefix("model.").removesuffix(".weight").removesuffix("_weight")
    return Found(layer, path, f"{which} {layer.stride if name == 'conv2d' else ''}")


def _pair(value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return (pair[0], pair[-1])


def is_global_mean(node: fx.Node, name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is a mean over the whole of (H, W)."""
    source = node.args[0]
    if name != "mean" or not isinstance(source, fx.Node):
        return False
    rank = getattr(source.meta.get("example"), "ndim", 0)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if rank != 4 or not isinstance(dims, tuple | list):
        return False
    return {dim % rank for dim in dims} == {2, 3}


def is_in_place(name: str) -> bool:
    """Whether a function changes a tensor that it is given."""
    special = ("setitem", "iadd", "isub", "imul", "itruediv")
    return name in special or (name.endswith("_") and not name.endswith("__"))


def why_no_function(name: str) -> str:
    """Why a function is refused, and what to do."""
    if name in ("softmax", "log_softmax"):
        return (
            f"the output of {name} is not a spike; return the logits without it, and use LIF "
            "neurons inside the network"
        )
    if name in ("mean", "sum", "cumsum"):
        return (
            f"there is no rule for this {name}; return the logits of every step as [T, B, K], "
            "which are averaged outside, and average maps with .mean((2, 3)) or AdaptiveAvgPool2d"
        )
    if name in ("relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu"):
        return f"the output of {name} is not a spike; use LIF neurons"
    if name in ("scaled_dot_product_attention", "matmul", "bmm", "einsum", "baddbmm", "mm"):
        return f"{name} multiplies values of the network with each other; NIR has fixed weights"
    if is_in_place(name):
        return f"{name} changes a tensor in place; make a new one"
    if name in ("cat", "concat", "concatenate"):
        return f"NIR cannot join tensors ({name}); add currents instead"
    if name.startswith(("ones", "full", "rand", "empty", "new_", "bernoulli", "arange")):
        return (
            f"{name} makes a tensor that is not computed from the input; put a constant current "
            "into the bias of a layer"
        )
    if name in ("sub", "rsub", "subtract"):
        return f"NIR sums currents and does not subtract ({name}); write a + (-1) * b"
    return (
        f"there is no rule for {name}; use layers, sums, flatten, avg_pool2d, max_pool2d and "
        "dropout"
    )


def check_in_place(node: fx.Node, root: nn.Module, site: str) -> None:
    """``a += b`` is a sum where nobody else holds ``a``."""
    first = node.args[0]
    fresh = (
        isinstance(first, fx.Node)
        and len(first.users) == 1
        and (
            name_of(first) in ("add", *_SYNAPSES)
            if first.op == "call_function"
            else first.op == "call_module"
            and not isinstance(root.get_submodule(str(first.target)), (nn.Flatten, *WITHOUT_EFFECT))
        )
    )
    if not fresh:
        raise ExportError(f"{site} changes a tensor in place that others may hold; write a = a + b")


def real_users(node: fx.Node) -> list[fx.Node]:
    """What takes a value, where it was only moved between: time folded and unfolded, as ours do."""
    found = []
    for user in node.users:
        moved = user.op in ("call_method", "call_function") and name_of(user) in REARRANGING
        found += real_users(user) if moved else [user]
    return found


def callable_of(node: fx.Node) -> Any:
    """What a node calls, taking a tensor first."""
    if node.op == "call_method":
        return lambda tensor, *args, **kwargs: getattr(tensor, str(node.target))(*args, **kwargs)
    return node.target


def path_of(node: fx.Node, name: str) -> str:
    """Path for the node of a function: that of the module in whose forward it is, and its name."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else "model"
    return f"{path}.{name}".removeprefix("model.")

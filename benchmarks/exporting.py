"""Small networks of other libraries, and the NIR graphs that each library writes of them.

The extra ``interop`` installs them; each is imported only when its function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from tser.deploy.foreign import quiet

STEPS, BATCH = 12, 3
IMAGE, VECTOR = (1, 8, 8), (16,)


@dataclass(frozen=True)
class Written:
    """A graph from another library, and what the library's own network did.

    Attributes:
        graph: as the library's export function returned it.
        dt: time step [s] for which the library wrote it; the graph does not say.
        x: input ``[T, B, *input_shape]``, float32.
        spikes: per NIR node ``[T, B, ...]``, bool.
    """

    graph: nir.NIRGraph
    dt: float
    x: np.ndarray
    spikes: dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A network to be written.

    Attributes:
        make: the network, of modules in order.
        shape: of one input.
        says: what it consists of, for tables.
    """

    make: Callable[[], nn.Sequential]
    shape: tuple[int, ...]
    says: str


def write(library: str, case: Case) -> Written:
    """Export the network of ``case`` by ``library`` and run it."""
    torch.manual_seed(0)
    net = case.make()
    x = (torch.rand(STEPS, BATCH, *case.shape) < 0.5).float() * 2
    with quiet(), torch.no_grad():
        return _WRITERS[library](net, x)


# --- snnTorch ------------------------------------------------------------------------------

SNNTORCH_DT = 1e-4
"""Fixed in its export function [s]."""


def leaky(
    beta: float, shape: tuple[int, ...], *, alpha: float | None = None, **options: Any
) -> Any:
    """Neurons of snnTorch as its export function needs them.

    A decay and a threshold for each neuron: with one for a layer it ends in an error (1.0.0, nir
    1.0.8). NIR has no reset but the one to a value, at once.
    """
    import snntorch

    chosen = {
        "beta": torch.full(shape, beta),
        "threshold": torch.full(shape, 0.3),
        "init_hidden": True,
        "reset_mechanism": "zero",
        "reset_delay": False,
        **options,
    }
    if alpha is None:
        return snntorch.Leaky(**chosen)
    return snntorch.Synaptic(alpha=torch.full(shape, alpha), **chosen)


def recurrent(bias: bool) -> nn.Sequential:
    """A layer with connections to itself; ``bias``: on those."""
    import snntorch

    layer = snntorch.RLeaky(
        beta=0.5, linear_features=12, init_hidden=True, reset_mechanism="zero", reset_delay=False
    )
    if not bias:
        layer.recurrent.bias.data.zero_()
    return nn.Sequential(nn.Linear(16, 12), layer, nn.Linear(12, 10), leaky(0.9, (10,)))


def _snntorch_conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        leaky(0.5, (4, 8, 8)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
        leaky(0.9, (10,)),
    )


def _snntorch_synaptic() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 12),
        leaky(0.5, (12,), alpha=0.75),
        nn.Linear(12, 10),
        leaky(0.9, (10,), alpha=0.75),
    )


SNNTORCH = {
    "conv": Case(_snntorch_conv, IMAGE, "conv, Leaky, pool, linear, Leaky"),
    "synaptic": Case(_snntorch_synaptic, VECTOR, "linear, Synaptic, twice"),
    "recurrent": Case(lambda: recurrent(bias=False), VECTOR, "linear, RLeaky, linear, Leaky"),
}


def snntorch_graph(net: nn.Sequential, sample: Tensor) -> nir.NIRGraph:
    """The graph of ``export_to_nir``.

    Args:
        net: the network.
        sample: ``[B, *input_shape]``; the export function has to be told that B is no part of it.
    """
    from snntorch.export_nir import export_to_nir

    with quiet():
        return export_to_nir(net, sample, ignore_dims=[0])


def _write_snntorch(net: nn.Sequential, x: Tensor) -> Written:
    graph = snntorch_graph(net, x[0])
    for module in net:
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    spikes = _run(net, x, [name for name, m in net.named_children() if hasattr(m, "reset_mem")])
    named = {
        f"{name}.lif" if f"{name}.lif" in graph.nodes else name: spikes[name] for name in spikes
    }
    return Written(graph, SNNTORCH_DT, x.numpy(), named)


# --- SpikingJelly --------------------------------------------------------------------------

SPIKINGJELLY_DT = 1e-3


def _spikingjelly(*makers: Callable[[Any, Any], nn.Module]) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        from spikingjelly.activation_based import layer, neuron

        return nn.Sequential(*(maker(layer, neuron) for maker in makers))

    return make


def _linear(inputs: int, outputs: int) -> Callable[[Any, Any], nn.Module]:
    return lambda layer, neuron: layer.Linear(inputs, outputs)


SPIKINGJELLY = {
    "conv": Case(
        _spikingjelly(
            lambda layer, neuron: layer.Conv2d(1, 4, 3, padding=1, bias=False),
            lambda layer, neuron: neuron.LIFNode(tau=2.0, v_threshold=0.3),
            lambda layer, neuron: layer.AvgPool2d(2),
            lambda layer, neuron: layer.Flatten(),
            lambda layer, neuron: layer.Linear(64, 10),
            lambda layer, neuron: neuron.LIFNode(tau=3.0, v_threshold=0.3, decay_input=False),
        ),
        IMAGE,
        "conv, LIFNode, pool, linear, LIFNode without decay_input",
    ),
    "reset": Case(
        _spikingjelly(
            _linear(16, 12),
            lambda layer, neuron: neuron.LIFNode(tau=2.0, v_threshold=0.3, v_reset=-0.2),
            _linear(12, 10),
            lambda layer, neuron: neuron.ParametricLIFNode(init_tau=2.5, v_threshold=0.1),
        ),
        VECTOR,
        "linear, LIFNode with v_reset, linear, ParametricLIFNode",
    ),
    "if": Case(
        _spikingjelly(
            _linear(16, 12),
            lambda layer, neuron: neuron.IFNode(),
            _linear(12, 10),
            lambda layer, neuron: neuron.IFNode(v_threshold=0.3),
        ),
        VECTOR,
        "linear, IFNode, twice",
    ),
    "cuba": Case(
        _spikingjelly(
            _linear(16, 12),
            lambda layer, neuron: neuron.CUBALIFNode(c_decay=0.75, v_decay=0.5),
            _linear(12, 10),
            lambda layer, neuron: neuron.CUBALIFNode(c_decay=0.8, v_decay=0.9),
        ),
        VECTOR,
        "linear, CUBALIFNode, twice",
    ),
}


def _write_spikingjelly(net: nn.Sequential, x: Tensor) -> Written:
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    graph = export_to_nir(net, x[0], dt=SPIKINGJELLY_DT)
    functional.reset_net(net)
    firing = [name for name, m in net.named_children() if isinstance(m, neuron.BaseNode)]
    spikes = _run(net, x, firing)
    return Written(graph, SPIKINGJELLY_DT, x.numpy(), {f"_{name}": spikes[name] for name in firing})


# --- Norse ---------------------------------------------------------------------------------


NORSE_DT = 1e-3


def _norse_boxes() -> nn.Sequential:
    from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState

    values = LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.3))
    net: nn.Sequential = SequentialState(
        nn.Linear(16, 12), LIFBoxCell(values), nn.Linear(12, 10), LIFBoxCell(values)
    )
    return net


NORSE = {"boxes": Case(_norse_boxes, VECTOR, "linear, LIFBoxCell, twice")}


def _write_norse(net: nn.Sequential, x: Tensor) -> Written:
    from norse.torch import to_nir

    graph = to_nir(net, x[0, 0], dt=NORSE_DT)
    return Written(graph, NORSE_DT, x.numpy(), _run(net, x, ["1", "3"]))


_WRITERS = {
    "snnTorch": _write_snntorch,
    "SpikingJelly": _write_spikingjelly,
    "Norse": _write_norse,
}
CASES = {"snnTorch": SNNTORCH, "SpikingJelly": SPIKINGJELLY, "Norse": NORSE}
"""Library -> name -> network."""


def _run(net: nn.Sequential, x: Tensor, firing: list[str]) -> dict[str, np.ndarray]:
    """Spikes ``[T, B, ...]`` of the layers ``firing`` of a network that is called step by step."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in firing}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            kept[name].append(spikes.numpy() > 0)

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in firing]
    hands_on = type(net) is not nn.Sequential  # Norse's; the others keep the state in the modules
    state: Any = None
    for step in x:
        if hands_on:
            _, state = net(step, state)
        else:
            net(step)
    for hook in hooks:
        hook.remove()
    return {name: np.stack(values) for name, values in kept.items()}

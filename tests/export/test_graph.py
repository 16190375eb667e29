"""The one view of a NIR graph: order, cycles, nesting, shapes, time and refusals."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import pytest

from tests.graphs import DT, conv, flatten, full, lif, network, view
from tser.errors import InputFileError, UsageError
from tser.export.graph import Edge, Graph, resolve


def _linear(outputs: int, inputs: int) -> nir.Linear:
    return nir.Linear(weight=full((outputs, inputs), 0.5))


def _names(graph: Any) -> list[str]:
    return list(graph.nodes)


RESIDUAL = [
    ("input", "first"),
    ("first", "a"),
    ("a", "middle"),
    ("middle", "b"),
    ("b", "last"),
    ("first", "last"),
    ("last", "output"),
]


def _residual() -> nir.NIRGraph:
    nodes = {"first": lif(2), "a": _linear(2, 2), "middle": lif(2), "b": _linear(2, 2)}
    return network((2,), nodes | {"last": lif(2)}, RESIDUAL, (2,))


def _ports(shape: int) -> tuple[nir.Input, nir.Output]:
    return nir.Input({"input": np.array([shape])}), nir.Output({"output": np.array([shape])})


def _nested(edges: list[tuple[str, str]] | None = None, **nodes: Any) -> nir.NIRGraph:
    """A graph inside another, from ``in`` to ``out``."""
    first, last = _ports(2)
    names = ["in", *nodes, "out"]
    inner = {"in": first, **nodes, "out": last}
    return nir.NIRGraph(inner, edges or list(itertools.pairwise(names)), type_check=False)


# --- order ---------------------------------------------------------------------------------


def test_the_view_of_a_residual_block() -> None:
    graph = resolve(_residual())
    assert _names(graph) == ["input", "first", "a", "middle", "b", "last", "output"]
    assert graph.nodes["last"].inputs == (Edge("b"), Edge("first"))
    assert [node.name for node in graph.spiking] == ["first", "middle", "last"]
    assert (graph.input.name, graph.output.name) == ("input", "output")
    assert graph.nodes["a"].kind == "Linear"
    assert not graph.recurrent


def _branching() -> nir.NIRGraph:
    """Many orders of execution would do, and the loop could be cut at either of its edges."""
    nodes = {"a": lif(2), "b": lif(2), "c": _linear(2, 2), "d": lif(2), "e": lif(2)}
    edges = [("input", "a"), ("input", "b"), ("a", "c"), ("c", "a"), ("b", "d"), ("c", "e")]
    return network((2,), nodes, [*edges, ("d", "e"), ("e", "output")], (2,))


@pytest.mark.parametrize("make", [_residual, _branching])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_does_not_depend_on_how_nodes_are_stored(
    make: Callable[[], nir.NIRGraph], seed: int
) -> None:
    original, shuffled = resolve(make()), make()
    names = list(shuffled.nodes)
    random.Random(seed).shuffle(names)
    shuffled.nodes = {name: shuffled.nodes[name] for name in names}
    found = resolve(shuffled)
    assert _names(found) == _names(original)
    for name, node in found.nodes.items():
        assert node.inputs == original.nodes[name].inputs


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_the_edges_gives_an_order_of_execution(seed: int) -> None:
    graph = _residual()
    random.Random(seed).shuffle(graph.edges)
    order = _names(found := resolve(graph))
    assert sorted(order) == sorted(graph.nodes)
    for node in found.nodes.values():
        for edge in node.inputs:
            assert order.index(edge.source) < order.index(node.name)


def test_a_long_chain_needs_no_deep_stack() -> None:
    nodes = {f"n{i}": flatten(1) for i in range(3000)}
    assert len(view((2,), nodes).nodes) == 3002


# --- shapes --------------------------------------------------------------------------------


def test_every_node_has_its_shapes() -> None:
    weight = np.ones((3, 1, 3, 3))
    nodes = {"conv": conv(weight, (4, 6)), "lif": lif((3, 2, 4)), "flat": flatten()}
    graph = view((1, 4, 6), nodes | {"fc": _linear(5, 24)})
    shapes = {name: (node.input_shape, node.output_shape) for name, node in graph.nodes.items()}
    assert shapes == {
        "input": ((1, 4, 6), (1, 4, 6)),
        "conv": ((1, 4, 6), (3, 2, 4)),
        "lif": ((3, 2, 4), (3, 2, 4)),
        "flat": ((3, 2, 4), (24,)),
        "fc": ((24,), (5,)),
        "output": ((5,), (5,)),
    }


def test_a_contradiction_names_the_node() -> None:
    nodes = {"first": lif(3), "narrow": _linear(2, 4)}
    graph = network((3,), nodes, _chain("first", "narrow"), (2,))
    with pytest.raises(InputFileError, match=r"the file: node 'narrow' \(Linear\): .* 4 inputs"):
        resolve(graph, origin="the file")


def test_a_sum_of_different_shapes_names_the_node() -> None:
    edges = [("input", "a"), ("input", "b"), ("a", "sum"), ("b", "sum"), ("sum", "output")]
    nodes = {"a": _linear(2, 4), "b": _linear(3, 4), "sum": lif(1)}
    with pytest.raises(InputFileError, match="node 'sum' sums inputs of different shapes"):
        resolve(network((4,), nodes, edges, (2,)))


def test_a_delayed_edge_of_another_shape_names_both_nodes() -> None:
    edges = [("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    with pytest.raises(InputFileError, match=r"node 'lif' takes \(4,\), 'back' gives \(3,\)"):
        resolve(network((4,), {"lif": lif(4), "back": _linear(3, 4)}, edges, (4,)))


# --- cycles --------------------------------------------------------------------------------


_KINDS: dict[str, Callable[[], Any]] = {
    "s": lambda: lif(2),
    "l": lambda: nir.LI(tau=full(2, DT), r=full(2, 1), v_leak=full(2, 0)),
    "w": lambda: _linear(2, 2),
    "d": lambda: nir.Delay(full(2, DT)),
}


def _looped(text: str) -> nir.NIRGraph:
    """Edges as ``a>b``, from ``in`` to ``out``; the first letter of a node says what it is."""
    ends = {"in": "input", "out": "output"}
    pairs = [edge.split(">") for edge in text.split()]
    names = dict.fromkeys(name for pair in pairs for name in pair if name not in ends)
    edges = [(ends.get(a, a), ends.get(b, b)) for a, b in pairs]
    return network((2,), {name: _KINDS[name[0]]() for name in names}, edges, (2,))


def _late(graph: Graph) -> str:
    """The delayed edges."""
    pairs = [(e.source, n.name) for n in graph.nodes.values() for e in n.inputs if e.delayed]
    return " ".join(sorted(f"{a}>{b}" for a, b in pairs))


LOOPS = {
    "weights on the way back": ("in>s s>w w>s s>out", "s>w"),
    "a neuron that feeds itself": ("in>s s>s s>out", "s>s"),
    "a chain of weights": ("in>s s>w1 w1>w2 w2>s s>out", "s>w1"),
    "a filter behind the spikes": ("in>s s>w w>l l>s s>out", "s>w"),
    "a delay behind the weights": ("in>s s>w w>d d>s s>out", "s>w"),
    "a delay behind the spikes": ("in>s s>d d>w w>s s>out", "s>d"),
    "no spikes in it": ("in>l l>w w>l l>out", "l>w"),
    "only the way back of two neurons": ("in>s1 s1>w1 w1>s2 s2>w2 w2>s1 s2>out", "s2>w2"),
    "one for each of two neurons": ("in>s1 s1>w1 w1>s1 s1>s2 s2>w2 w2>s2 s2>out", "s1>w1 s2>w2"),
    "one way back for two neurons": ("in>s1 s1>s2 s2>out s1>w s2>w w>s1", "s1>w s2>w"),
    "weights shared by input and loop": ("in>w w>s s>w s>out", "s>w"),
    "the input on the way back": ("in>s s>w w>s in>w s>out", "s>w"),
    "a way back that also leads on": ("in>s s>w w>s w>out", "w>s"),
    "a fork on the way back": ("in>s1 s1>s2 s2>w w>s1 w>s2 s2>out", "s2>w"),
    "a way past a neuron": ("in>s1 s1>s2 s2>s3 s1>s3 s3>w w>s1 s3>out", "s3>w"),
    "loops in a loop": ("in>s1 s1>l l>w w>l l>s1 s1>out", "l>w s1>l"),
    "two that share a neuron": ("in>s1 s1>s2 s2>s1 s2>d d>s2 s2>out", "s2>d s2>s1"),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_cycle_reads_the_last_spikes_of_its_neurons(case: str) -> None:
    text, late = LOOPS[case]
    for seed in range(6):
        raw = _looped(text)
        names = list(raw.nodes)
        random.Random(seed).shuffle(names)
        raw.nodes = {name: raw.nodes[name] for name in names}
        random.Random(seed + 100).shuffle(raw.edges)
        graph = resolve(raw)
        assert _late(graph) == late
        order = _names(graph)
        for node in graph.nodes.values():
            for edge in node.inputs:
                assert edge.delayed or order.index(edge.source) < order.index(node.name)


def test_a_loop_with_two_entries_is_cut_once() -> None:
    graph = resolve(_looped("in>s1 in>s2 s1>w1 w1>s2 s2>w2 w2>s1 s2>out"))
    assert _late(graph) == "s2>w2"


def test_spikes_stay_in_time_on_every_other_edge() -> None:
    """A layer's readers outside of its loop, and those of what comes back, are not late."""
    graph = resolve(_looped("in>s1 s1>w1 w1>s1 s1>s2 s1>w2 w2>s2 s2>out"))
    assert _late(graph) == "s1>w1"
    assert graph.nodes["s1"].inputs == (Edge("input"), Edge("w1"))
    assert graph.nodes["w1"].inputs == (Edge("s1", delayed=True),)


def test_a_cycle_without_state_is_refused() -> None:
    edges = [("input", "a"), ("a", "b"), ("b", "a"), ("a", "output")]
    with pytest.raises(InputFileError, match="a -> b -> a has no neuron and no delay"):
        resolve(network((2,), {"a": _linear(2, 2), "b": _linear(2, 2)}, edges, (2,)))
    for text in ("in>s s>w1 w1>w2 w2>w1 w1>s w1>out", "in>w1 w1>s s>w2 w1>w2 w2>w1 s>out"):
        with pytest.raises(InputFileError, match="w1 -> w2 -> w1 has no neuron and no delay"):
            resolve(_looped(text))
    with pytest.raises(InputFileError, match="the cycle w -> w has no neuron"):
        resolve(_looped("in>w w>w w>out"))


# --- nested graphs -------------------------------------------------------------------------


def test_nested_graphs_are_opened() -> None:
    block = _nested(fc=_linear(2, 2), lif=lif(2))
    graph = resolve(network((2,), {"pre": lif(2), "block": block}, _chain("pre", "block"), (2,)))
    inside = ["block.in", "block.fc", "block.lif", "block.out"]
    assert _names(graph) == ["input", "pre", *inside, "output"]
    assert graph.nodes["block.in"].inputs == (Edge("pre"),)
    assert graph.nodes["output"].inputs == (Edge("block.out"),)
    assert graph.nodes["block.lif"].output_shape == (2,)


def test_graphs_nest_to_any_depth() -> None:
    inner = _nested(lif=lif(2))
    middle = _nested(inner=inner)
    graph = resolve(network((2,), {"outer": middle}, _chain("outer"), (2,)))
    assert "outer.inner.lif" in graph.nodes
    assert graph.nodes["outer.inner.in"].inputs == (Edge("outer.in"),)


def test_recurrence_inside_a_nested_graph() -> None:
    loop = [("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")]
    block = _nested(loop, lif=lif(2), w=_linear(2, 2))
    graph = resolve(network((2,), {"rnn": block}, _chain("rnn"), (2,)))
    assert graph.nodes["rnn.lif"].inputs == (Edge("rnn.in"), Edge("rnn.w"))
    assert graph.nodes["rnn.w"].inputs == (Edge("rnn.lif", delayed=True),)


def test_a_nested_graph_has_one_entrance() -> None:
    first, last = _ports(2)
    block = nir.NIRGraph(
        {"in": first, "second": _ports(2)[0], "out": last},
        [("in", "out"), ("second", "out")],
        type_check=False,
    )
    with pytest.raises(InputFileError, match="nested graph 'block' has 2 inputs and 1 outputs"):
        resolve(network((2,), {"block": block}, _chain("block"), (2,)))


@pytest.mark.parametrize("names", [("block", "block.lif"), ("block.lif", "block")])
def test_names_of_nested_nodes_may_not_clash(names: tuple[str, str]) -> None:
    nodes = {"block": _nested(lif=lif(2)), "block.lif": lif(2, v_th=7)}
    nodes = {name: nodes[name] for name in names}
    with pytest.raises(InputFileError, match="two nodes would be called 'block.lif'"):
        resolve(network((2,), nodes, _chain(*names), (2,)))


def _chain(*names: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(["input", *names, "output"]))


# --- what is no graph ----------------------------------------------------------------------


def test_an_edge_stated_twice_is_refused() -> None:
    with pytest.raises(InputFileError, match="an edge is stated twice"):
        resolve(network((2,), {"a": lif(2)}, [*_chain("a"), ("input", "a")], (2,)))


def test_an_edge_to_nowhere_is_refused() -> None:
    with pytest.raises(InputFileError, match="names the node 'ghost', which is not there"):
        resolve(network((2,), {"a": lif(2)}, [*_chain("a"), ("a", "ghost")], (2,)))


@pytest.mark.parametrize("edges", [[], [("stray", "stray")], [("stray", "output")]])
def test_a_node_that_nothing_leads_to_is_refused(edges: list[tuple[str, str]]) -> None:
    graph = network((2,), {"a": lif(2), "stray": lif(2)}, [*_chain("a"), *edges], (2,))
    with pytest.raises(InputFileError, match="nothing leads from the input to the node 'stray'"):
        resolve(graph)


@pytest.mark.parametrize("port", ["input", "output"])
def test_a_graph_has_one_input_and_one_output(port: str) -> None:
    graph = network((2,), {"a": lif(2)})
    del graph.nodes[port]
    graph.edges = [edge for edge in graph.edges if port not in edge]
    with pytest.raises(InputFileError, match=f"has 0 {port.capitalize()} nodes"):
        resolve(graph)


def test_the_input_takes_no_edge() -> None:
    graph = network((2,), {"a": lif(2)}, [*_chain("a"), ("a", "input")], (2,))
    with pytest.raises(InputFileError, match="the input 'input' has an incoming edge"):
        resolve(graph)


def test_a_foreign_node_is_refused_by_name() -> None:
    graph = network((2,), {"a": lif(2)})
    graph.nodes["odd"] = nir.ir.graph.Identity(input_type={"input": np.array([2])})
    with pytest.raises(InputFileError, match="node 'odd' is a Identity, which tser does not know"):
        resolve(graph)


# --- time and metadata ---------------------------------------------------------------------


def test_dt_comes_from_the_file_or_the_caller() -> None:
    graph = network((2,), {"a": lif(2)}, dt=2e-3)
    for view_ in (resolve(graph), resolve(graph, dt=2e-3)):
        assert (view_.dt, view_.dt_origin) == (2e-3, "stated in the file")
    with pytest.raises(UsageError, match=r"the file states dt = 0.002 s, not 0.0001 s; leave out"):
        resolve(graph, dt=1e-4, origin="the file")
    silent = resolve(network((2,), {"a": lif(2)}, dt=None), dt=1e-4)
    assert (silent.dt, silent.dt_origin) == (1e-4, "given by the caller")


def test_a_file_without_dt_asks_for_it() -> None:
    graph = network((2,), {"a": lif(2)}, dt=None)
    with pytest.raises(UsageError, match="the file does not state its time step; pass --dt"):
        resolve(graph, origin="the file")
    assert resolve(graph, dt=1e-3).dt == 1e-3
    assert resolve(network((2,), {"a": _linear(2, 2)}, dt=None)).dt_origin.startswith("not needed")


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("inf"), float("nan")])
def test_dt_is_a_positive_number(dt: float) -> None:
    with pytest.raises(UsageError, match="dt must be a positive number"):
        resolve(network((2,), {"a": lif(2)}), dt=dt)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["tau", "r", "v_leak", "v_threshold", "v_reset"])
def test_parameters_that_are_not_finite_are_refused(name: str, value: float) -> None:
    op = lif(2)
    graph = network((2,), {"a": op})
    getattr(op, name)[1] = value
    if (name, value) in (("tau", np.inf), ("v_threshold", np.inf)):  # no leak; never fires
        assert resolve(graph).spiking
        return
    with pytest.raises(InputFileError, match=rf"the file: .*{name}.*node 'a'|node 'a'.*{name}"):
        resolve(graph, origin="the file")


def test_metadata_are_plain_values() -> None:
    stated = {"dt": np.float64(1e-3), "timesteps": np.int64(5), "name": b"net"}
    graph = view((2,), {"a": lif(2)}, class_names='["x", "y"]', **stated)
    assert graph.metadata["name"] == "net"
    assert type(graph.metadata["dt"]) is float
    assert graph.timesteps == 5
    assert graph.class_names == ["x", "y"]
    bare = view((2,), {"a": lif(2)})
    assert bare.timesteps is None
    assert bare.class_names is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dt", "fast"),
        ("dt", [1, 2]),
        ("reset", "subtract"),
        ("timesteps", "four"),
        ("timesteps", 0),
        ("timesteps", -3),
        ("timesteps", 2.5),
        ("timesteps", float("inf")),
        ("class_names", "{"),
        ("class_names", "3"),
        ("class_names", 3),
    ],
)
def test_metadata_that_make_no_sense_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputFileError, match=key) as caught:
        view((2,), {"a": lif(2)}, **{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["dt", "timesteps", "reset", "encoding", "class_names"])
def test_metadata_of_another_kind_are_refused_on_one_line(key: str) -> None:
    graph = network((2,), {"a": lif(2)})
    graph.metadata[key] = np.ones((2, 2))
    with pytest.raises(InputFileError) as caught:
        resolve(graph, origin="the file")
    assert str(caught.value).startswith("the file: ")
    assert "\n" not in str(caught.value)


def test_class_names_nested_without_end_are_refused() -> None:
    graph = network((2,), {"a": lif(2)}, class_names="[" * 100_000)
    with pytest.raises(InputFileError, match="class_names"):
        resolve(graph)


def test_a_graph_of_unknown_dt_can_be_looked_at() -> None:
    graph = network((2,), {"a": lif(2), "late": nir.Delay(full(2, DT))}, dt=None)
    with pytest.raises(UsageError, match="--dt SECONDS"):
        resolve(graph)
    found = resolve(graph, timeless=True)
    assert np.isnan(found.dt)
    assert found.dt_origin == "missing"
    assert resolve(graph, DT, timeless=True).dt == DT

"""``.nir`` files: bits kept, digests that notice everything, and files nobody should trust."""

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from tests.graphs import conv, dyadic, full, lif, network, pool
from tests.hostile import HOSTILE as GREEDY
from tser.errors import InputFileError
from tser.export import nir_file
from tser.export.graph import resolve
from tser.export.nir_file import digest, flatten, read_nir, write_nir

QUICK, MUTANTS = 60, 500


def _every_class() -> nir.NIRGraph:
    """One node of each of NIR's classes; no network anybody would run."""
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype(np.float32)

    inner = network((3,), {"lif": lif(3)}, dt=None, note="inside")
    cuba = {name: values(3) for name in ("tau_syn", "tau_mem", "r", "v_leak", "w_in")}
    nodes = {
        "affine": nir.Affine(values(3, 4), values(3)),
        "linear": nir.Linear(rng.normal(size=(3, 4))),  # float64 stays float64
        "scale": nir.Scale(values(3)),
        "conv1d": nir.Conv1d(9, values(4, 2, 3), 2, 1, 1, 1, values(4)),
        "conv2d": conv(values(4, 1, 3, 5), (9, 8), stride=(2, 1), padding=(1, 0), groups=2),
        "same": conv(values(4, 2, 3, 3), (9, 8), padding="same"),
        "average": pool(nir.AvgPool2d, 2),
        "sum": pool(nir.SumPool2d, (2, 3), (1, 2), (0, 1)),
        "flatten": nir.Flatten({"input": np.array([2, 3])}, start_dim=-2, end_dim=-1),
        "delay": nir.Delay(values(3)),
        "threshold": nir.Threshold(values(3)),
        "i": nir.I(values(3)),
        "li": nir.LI(values(3), values(3), values(3)),
        "cuba_li": nir.CubaLI(**cuba),
        "if": nir.IF(values(3), values(3), values(3)),
        "lif": lif((2, 3, 3), tau=values(2, 3, 3)),
        "cuba_lif": nir.CubaLIF(**cuba, v_threshold=values(3), v_reset=values(3)),
        "nested": inner,
    }
    return network((4,), nodes, [("input", "lif"), ("lif", "output")], (3,), name="é", steps=4)


def _small() -> nir.NIRGraph:
    rng = np.random.default_rng(1)
    affine = nir.Affine(dyadic(rng, (3, 2)), dyadic(rng, 3))
    return network((2,), {"fc": affine, "lif": lif(3, v_reset=0.25)}, timesteps=4)


def _flat(graph: nir.NIRGraph) -> dict[str, np.ndarray[Any, Any]]:
    return {key: np.asarray(value) for key, value in flatten(graph.to_dict()).items()}


def _assert_same(a: nir.NIRGraph, b: nir.NIRGraph) -> None:
    ours, theirs = _flat(a), _flat(b)
    assert ours.keys() == theirs.keys()
    assert sorted(a.edges) == sorted(b.edges)
    for key in ours.keys() - {"edges"}:
        x, y = ours[key], theirs[key]
        assert (x.dtype, x.shape) == (y.dtype, y.shape) or x.dtype.kind in "SUO", key
        assert x.tobytes() == y.tobytes() or x.tolist() == y.tolist(), key
    assert {k: type(v) for k, v in a.nodes.items()} == {k: type(v) for k, v in b.nodes.items()}


# --- what is written is what is read -------------------------------------------------------


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    graph, path = _every_class(), tmp_path / "all.nir"
    covered = {type(node).__name__ for node in graph.nodes.values()} | {"NIRGraph"}
    assert len(covered) == 19
    stated = write_nir(graph, path)
    back = read_nir(path)
    _assert_same(back, graph)
    assert back.metadata["sha256"] == stated == digest(back) == digest(_every_class())


def test_others_read_what_we_write(tmp_path: Path) -> None:
    graph, path = _small(), tmp_path / "small.nir"
    write_nir(graph, path)
    plain = nir.read(path)  # with nir's own type check
    _assert_same(plain, graph)
    assert digest(plain) == graph.metadata["sha256"]
    assert resolve(plain).nodes.keys() == resolve(graph).nodes.keys()


def test_we_read_what_others_write(tmp_path: Path) -> None:
    graph, path = _small(), tmp_path / "other.nir"
    nir.write(path, graph)
    back = read_nir(path)
    _assert_same(back, graph)
    assert "sha256" not in back.metadata


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.nir"
    write_nir(_small(), path)
    before = path.read_bytes()
    broken = _small()
    broken.metadata["odd"] = object()
    with pytest.raises(TypeError):
        write_nir(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- the digest ----------------------------------------------------------------------------


def _bits(name: str, parameter: str) -> Callable[[nir.NIRGraph], None]:
    def change(graph: nir.NIRGraph) -> None:
        value = getattr(graph.nodes[name], parameter)
        value.view(np.uint32).reshape(-1)[-1] ^= 1

    return change


def _rename(graph: nir.NIRGraph) -> None:
    graph.nodes = {{"fc": "fd"}.get(name, name): node for name, node in graph.nodes.items()}
    graph.edges = [tuple({"fc": "fd"}.get(name, name) for name in edge) for edge in graph.edges]


CHANGES: dict[str, Callable[[nir.NIRGraph], Any]] = {
    **{f"fc.{name}": _bits("fc", name) for name in ("weight", "bias")},
    **{
        f"lif.{name}": _bits("lif", name)
        for name in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    },
    "a name": _rename,
    "an edge less": lambda graph: graph.edges.pop(),
    "an edge more": lambda graph: graph.edges.append(("fc", "output")),
    "an edge turned": lambda graph: graph.edges.append(graph.edges.pop()[::-1]),
    "a value of the metadata": lambda graph: graph.metadata.update(timesteps=5),
    "the sign of a zero": lambda graph: graph.nodes["lif"].v_leak.__setitem__(0, -0.0),
    "an entry of the metadata": lambda graph: graph.metadata.update(note=""),
    "metadata of a node": lambda graph: graph.nodes["fc"].metadata.update(note="x"),
    "the class": lambda graph: graph.nodes.update(fc=nir.Linear(graph.nodes["fc"].weight)),
    "a shape": lambda graph: setattr(graph.nodes["fc"], "bias", graph.nodes["fc"].bias[None]),
    "the precision": lambda graph: setattr(
        graph.nodes["fc"], "bias", graph.nodes["fc"].bias.astype(np.float64)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_notices(change: str) -> None:
    graph = _small()
    CHANGES[change](graph)
    assert digest(graph) != digest(_small())


def test_the_digest_does_not_depend_on_the_order_of_storage() -> None:
    graph = _small()
    graph.nodes = dict(reversed(graph.nodes.items()))
    graph.edges = [tuple(edge) for edge in reversed(graph.edges)]
    graph.metadata = dict(reversed(graph.metadata.items())) | {"sha256": "whatever"}
    assert digest(graph) == digest(_small())


# --- files nobody should trust -------------------------------------------------------------


def _refused(path: Path) -> str:
    """The one-line reason for which ``path`` is refused, in time."""
    start = time.monotonic()
    with pytest.raises(InputFileError) as caught:
        read_nir(path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "small.nir"
    write_nir(_small(), path)
    return path


@pytest.mark.parametrize(
    "key",
    ["nodes/fc/weight", "nodes/lif/tau", "metadata/timesteps", "metadata/sha256"],
)
def test_a_changed_value_is_noticed(exported: Path, key: str) -> None:
    with h5py.File(exported, "r+") as file:
        dataset = file["node"][key]
        old = dataset[()]
        if isinstance(old, bytes):
            dataset[()] = old[::-1]
        elif old.ndim:
            dataset[(0,) * old.ndim] = np.nextafter(old.reshape(-1)[0], np.float32(9))
        else:
            dataset[()] = old + 1
    assert "match the digest" in _refused(exported)


def test_an_added_node_is_noticed(exported: Path) -> None:
    with h5py.File(exported, "r+") as file:
        file["node/nodes"].copy("lif", "lif2")
    assert "match the digest" in _refused(exported)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_file(exported: Path, keep: float) -> None:
    data = exported.read_bytes()
    exported.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    _refused(exported)


@pytest.mark.parametrize("data", [b"{}", b"tau = 2\n" * 999, bytes(5000), b"\x89HDF\r\n\x1a\n" * 9])
def test_a_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.nir"
    path.write_bytes(data)
    _refused(path)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.nir"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    _refused(path)


def test_no_file(tmp_path: Path) -> None:
    assert _refused(tmp_path / "none.nir").startswith("there is no file")
    assert _refused(tmp_path).startswith("there is no file")


def _no_node(file: h5py.File) -> None:
    file["elsewhere"] = 1


def _node_is_data(file: h5py.File) -> None:
    file["node"] = 1


def _empty_node(file: h5py.File) -> None:
    file.create_group("node")


def _unknown_class(file: h5py.File) -> None:
    file["node/type"] = "Transformer"


def _single_node(file: h5py.File) -> None:
    file["node/type"], file["node/scale"] = "Scale", np.ones(3)


def _no_edges(file: h5py.File) -> None:
    file["node/type"] = "NIRGraph"
    file.create_group("node/nodes")


def _nodes_are_data(file: h5py.File) -> None:
    file["node/type"], file["node/nodes"], file["node/edges"] = "NIRGraph", 3, np.ones((1, 2))


def _lacking(file: h5py.File) -> None:
    _no_edges(file)
    file["node/edges"] = np.array([[b"a", b"a"]])
    file["node/nodes/a/type"] = "LIF"


def _extra(file: h5py.File) -> None:
    _lacking(file)
    for name in ("tau", "r", "v_leak", "v_threshold", "__class__"):
        file[f"node/nodes/a/{name}"] = np.ones(1)


def _soft_link(file: h5py.File) -> None:
    _single_node(file)
    file["node/soft"] = h5py.SoftLink("/node/scale")


def _external_link(file: h5py.File) -> None:
    _single_node(file)
    file["node/out"] = h5py.ExternalLink("secret.h5", "/scale")


def _external_data(file: h5py.File) -> None:
    _single_node(file)
    where = [("secret.bin", 0, 24)]
    file.create_dataset("node/out", (3,), np.float64, external=where)


def _virtual_data(file: h5py.File) -> None:
    _single_node(file)
    layout = h5py.VirtualLayout((3,), np.float64)
    layout[:] = h5py.VirtualSource("secret.h5", "scale", (3,))
    file.create_virtual_dataset("node/out", layout)


def _contains_itself(file: h5py.File) -> None:
    _single_node(file)
    file["node/loop"] = file["node"]


def _deep(file: h5py.File) -> None:
    file.create_group("node/" + "a/" * 3000)


def _huge(file: h5py.File) -> None:
    _single_node(file)
    file.create_dataset("node/bias", (2**40,), np.float32, chunks=(2**16,))


def _huge_text(file: h5py.File) -> None:
    _single_node(file)
    file.create_dataset("node/name", (2**36,), h5py.string_dtype(), chunks=(2**10,))


def _not_utf8(file: h5py.File) -> None:
    file["node/type"] = np.bytes_(b"\xff\xfe")


HOSTILE = {
    _no_node: "holds no NIR graph",
    _node_is_data: "holds no NIR graph",
    _empty_node: "not a valid NIR graph",
    _unknown_class: "not a valid NIR graph",
    _single_node: "holds a single Scale, not a graph",
    _no_edges: "not a valid NIR graph",
    _nodes_are_data: "not a valid NIR graph",
    _lacking: "not a valid NIR graph",
    _extra: "not a valid NIR graph",
    _soft_link: "link out of its place",
    _external_link: "link out of its place",
    _external_data: "outside the file",
    _virtual_data: "outside the file",
    _contains_itself: "contains itself",
    _deep: "contains itself",
    _huge: "more memory",
    _huge_text: "more memory",
    _not_utf8: "not a readable NIR file",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__.strip("_"))
def test_a_hostile_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[h5py.File], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.arange(3.0).tofile("secret.bin")
    with h5py.File("secret.h5", "w") as file:
        file["scale"] = np.arange(3.0)
    path = tmp_path / "hostile.nir"
    with h5py.File(path, "w") as file:
        make(file)
    assert HOSTILE[make] in _refused(path)


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 MB that the machine could well give: a hundred of them are a machine's end."""
    monkeypatch.setattr(nir_file, "MEMORY_LIMIT", 400 * 2**20)
    path = tmp_path / "large.nir"
    with h5py.File(path, "w") as file:
        _single_node(file)
        file.create_dataset("node/bias", (2**27,), np.float32, chunks=(2**16,))
    assert "more memory" in _refused(path)


def _mutant(data: bytes, seed: int) -> bytes:
    """``data`` with one to three bytes changed."""
    rng = np.random.default_rng(seed)
    damaged = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(data), 1 + seed % 3)
    damaged[places] ^= rng.integers(1, 256, len(places), np.uint8)
    return damaged.tobytes()


@pytest.mark.parametrize(
    "seeds",
    [range(QUICK), pytest.param(range(QUICK, MUTANTS), marks=pytest.mark.slow)],
    ids=["quick", "rest"],
)
def test_a_damaged_byte_changes_nothing_silently(tmp_path: Path, seeds: range) -> None:
    path = tmp_path / "small.nir"
    stated = write_nir(_small(), path)
    data = path.read_bytes()

    def read(seed: int) -> str:
        mutant = tmp_path / f"{seed}.nir"
        mutant.write_bytes(_mutant(data, seed))
        try:
            graph = read_nir(mutant)
        except InputFileError as error:
            return "refused" if "\n" not in str(error) else f"mutant {seed}: {error}"
        return "same" if digest(graph) == stated else f"mutant {seed} was read as another graph"

    with ThreadPoolExecutor(2) as workers:
        outcomes = list(workers.map(read, seeds))
    assert set(outcomes) == {"refused", "same"}


@pytest.mark.parametrize("name", GREEDY)
def test_a_file_that_asks_for_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "hostile.nir"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nir's constructors divide by strides
        GREEDY[name](path)
    with pytest.raises(InputFileError) as caught:
        resolve(read_nir(path), origin=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- files of others -----------------------------------------------------------------------


def test_a_slash_in_a_name(tmp_path: Path) -> None:
    """HDF5 takes it for a folder, and nir's own reader fails."""
    graph, path = network((2,), {"a/b": lif(2), "a/c/d": lif(2)}), tmp_path / "x.nir"
    nir.write(path, graph)
    back = read_nir(path)
    assert back.nodes.keys() == graph.nodes.keys()
    assert resolve(back).nodes["a/c/d"].inputs[0].source == "a/b"
    write_nir(graph, path)
    assert digest(read_nir(path)) == graph.metadata["sha256"]


def test_one_parameter_for_a_layer_and_others_for_each_neuron(tmp_path: Path) -> None:
    """What nir's own constructor refuses by an assertion without words."""
    path = tmp_path / "x.nir"
    nir.write(path, network((3,), {"lif": lif(3, tau=[1, 2, 3])}))
    with h5py.File(path, "r+") as file:
        node = file["node/nodes/lif"]
        for name, value in {"r": np.float32(2), "v_leak": full(1, 0.5)}.items():
            del node[name]
            node[name] = value
    back = read_nir(path).nodes["lif"]
    assert back.tau.tolist() == [1, 2, 3]
    assert back.r.tolist() == [2, 2, 2]
    assert back.v_leak.tolist() == [0.5, 0.5, 0.5]


def test_types_as_fixed_length_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.nir"
    nir.write(path, _small())
    with h5py.File(path, "r+") as file:
        for name in ("fc", "lif", "input", "output"):
            kind = file[f"node/nodes/{name}/type"][()]
            del file[f"node/nodes/{name}/type"]
            file[f"node/nodes/{name}/type"] = np.bytes_(kind)
    _assert_same(read_nir(path), _small())


def test_reading_runs_nothing_from_the_folder_one_stands_in(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported.parent
    for module in ("h5py", "numpy", "json"):
        (folder / f"{module}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(folder)
    assert digest(read_nir(exported)) == digest(_small())
    assert not (folder / "ran").exists()

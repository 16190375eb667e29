"""One axis of a convolution behind pools, against loops over every tap."""

from collections import defaultdict

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tser.deploy.fit_axis import Axis
from tser.export.shapes import Window

ANY = settings(deadline=None, derandomize=True, max_examples=150)


def window(kernel: int, stride: int, dilation: int, pad: int) -> Window:
    pads = ((pad, pad), (pad, pad))
    return Window((kernel, kernel), (stride, stride), (dilation, dilation), pads, 1)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Window], list[int]]:
    """Pools and a convolution after them, and the sizes before, between and behind them."""
    size = draw(st.integers(1, 14))
    sizes = [size]
    found = []
    for _ in range(draw(st.integers(0, 2))):
        side = draw(st.integers(1, 3))
        found.append(window(side, draw(st.integers(1, side)), 1, draw(st.integers(0, side // 2))))
    found.append(window(*(draw(st.integers(low, 3)) for low in (1, 1, 1, 0))))
    for w in found:
        sizes.append(w.output(sizes[-1], sizes[-1])[0])
        assume(sizes[-1] >= 1)
    return found, sizes


def axis_of(drawn: tuple[list[Window], list[int]]) -> tuple[Axis, list[set[int]]]:
    """The axis and, by brute force, the inputs of every output."""
    found, sizes = drawn
    *pools, last = found
    axis = Axis.of(last, 0, sizes[-2], sizes[-1])
    for number in range(len(pools) - 1, -1, -1):
        axis = axis.behind(pools[number], 0, sizes[number])
    reach: list[set[int]] = [{n} for n in range(sizes[0])]
    for w, outputs in zip(found, sizes[1:], strict=True):
        after = []
        for o in range(outputs):
            taps = [o * w.stride[0] - w.pads[0][0] + k * w.dilation[0] for k in range(w.kernel[0])]
            after.append(set().union(*(reach[t] for t in taps if 0 <= t < len(reach))))
        reach = after
    return axis, reach


@ANY
@given(windows(), st.integers(1, 14), st.integers(1, 14))
def test_what_tiles_take(drawn: tuple[list[Window], list[int]], count: int, own: int) -> None:
    axis, reach = axis_of(drawn)
    # A padded pool reaches positions beyond its input that a pool before it would not have.
    assume(all(_taps(axis, o) == reach[o] for o in range(axis.outputs)))
    count = min(count, axis.outputs)
    tiles = [set().union(*reach[o : o + count]) for o in range(0, axis.outputs, count)]
    assert axis.widest(count) == max(map(len, tiles))
    sources = [set(range(n, n + own)) for n in range(0, axis.inputs, own)]
    assert axis.overlap(own, count) == max(sum(len(s & t) for t in tiles) for s in sources)
    assert axis.most_taps == max(map(len, reach))
    assert axis.all_taps == sum(map(len, reach))
    assert axis.most_targets == max(sum(n in r for r in reach) for n in range(axis.inputs))


def _taps(axis: Axis, output: int) -> set[int]:
    first = output * axis.stride - axis.pad
    return {first + offset for offset in axis.offsets if 0 <= first + offset < axis.inputs}


@ANY
@given(windows())
def test_no_tap_is_missing_and_without_padding_none_is_too_many(
    drawn: tuple[list[Window], list[int]],
) -> None:
    axis, reach = axis_of(drawn)
    assert all(reach[o] <= _taps(axis, o) for o in range(axis.outputs))
    if len(drawn[0]) == 1 or all(w.pads == ((0, 0), (0, 0)) for w in drawn[0]):
        assert [_taps(axis, o) for o in range(axis.outputs)] == reach


def test_like_inputs_share_their_weights() -> None:
    axis = Axis.of(window(3, 1, 1, 1), 0, 8, 8)
    assert axis.shapes(8) == (2, 2, 3)  # either end, and all between
    strided = Axis.of(window(3, 2, 1, 1), 0, 8, 4)
    assert strided.shapes(4) == (1, 1, 2)  # even ones, the last, odd ones between
    kinds = defaultdict(set)
    for o in range(4):
        for offset in range(3):
            kinds[2 * o - 1 + offset].add(offset)
    distinct = {tuple(sorted(v)) for k, v in kinds.items() if 0 <= k < 8}
    assert sorted(map(len, distinct)) == sorted(strided.shapes(4))

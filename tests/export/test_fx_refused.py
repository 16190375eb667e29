"""What a user's forward may not do, refused by layer, line and remedy; and what it may."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from tser.deploy.interpreter import run
from tser.export.graph import resolve
from tser.export.lower import ExportError, lower
from tser.user_models import UserStudent

STEPS, SHAPE, CLASSES = 3, (2, 4, 4), 4
Step = Callable[[Any, Any, Any], Any]


class Net(nn.Module):
    """A step of a user's making, with layers to use in it."""

    def __init__(self, step: Step, **layers: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.conv, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.lif, self.lif2 = norse.LIFBoxCell(), norse.LIFBoxCell()
        self.fc = nn.Linear(32, CLASSES)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.step(self, x, state)


class Loop(Net):
    """The same over T steps."""

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        result: Tensor = self.step(self, x, state)
        return result


def student(model: nn.Module) -> UserStudent:
    return UserStudent(model, STEPS, SHAPE, CLASSES, "mine:make").eval()


def two(state: Any) -> Any:
    return (None, None) if state is None else state


def spikes_added(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    a, s1 = m.lif(m.conv(x), s1)
    b, s2 = m.lif2(m.conv2(x), s2)
    return m.fc((a + b).flatten(1)), (s1, s2)


def spikes_pooled_and_added(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    a, s1 = m.lif(m.conv(x), s1)
    b, s2 = m.lif2(m.conv2(x), s2)
    return m.fc(F.avg_pool2d(a + b, 1).flatten(1)), (s1, s2)


def max_of_a_current(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(F.max_pool2d(m.conv(x), 1), state)
    return m.fc(z.flatten(1)), state


def max_of_rates(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc(m.pool(F.avg_pool2d(z, 1)).flatten(1)), state


def decides(m: Any, x: Any, state: Any) -> Any:
    y = m.conv(x)
    if y.sum() > 0:
        y = m.conv2(y)
    z, state = m.lif(y, state)
    return m.fc(z.flatten(1)), state


def reads_a_value(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x * x.max().item()), state)
    return m.fc(z.flatten(1)), state


def activates(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(F.relu(m.conv(x)), state)
    return m.fc(z.flatten(1)), state


def multiplies(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv2(x) * m.conv(x), state)
    return m.fc(z.flatten(1)), state


def divides_by_a_current(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(1 / m.conv(x), state)
    return m.fc(z.flatten(1)), state


def scales_to_infinity(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x) / 0, state)
    return m.fc(z.flatten(1)), state


def scales_the_batch(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x) * torch.ones(len(x), 1, 1, 1), state)
    return m.fc(z.flatten(1)), state


def scales_between_synapses(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv2(0.5 * m.conv(x)), state)


def reads_a_float(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) * float(x.mean()), state)


def reads_an_array(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) * np.asarray(x).mean(), state)


def subtracts(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) - m.conv2(x), state)


def takes_a_constant(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) + m.conv2(torch.zeros_like(x)), state)


def makes_a_constant(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) + m.conv2(torch.ones_like(x)), state)


def keeps_a_mean(m: Any, x: Any, state: Any) -> Any:
    current = m.conv(x)
    before = getattr(m, "mean", None)
    m.mean = current if before is None else 0.5 * before + 0.5 * current
    return plain(m, m.mean, state)


def keeps_a_mean_in_a_buffer(m: Any, x: Any, state: Any) -> Any:
    current = m.conv(x)
    m.norm.mean = 0.5 * m.norm.mean + 0.5 * current.mean()
    return plain(m, current, state)


def mean_of_all(m: Any, x: Any, state: Any) -> Any:
    return plain(m, m.conv(x) + x.mean(), state)


def adds_up_over_time(m: Any, x: Any, state: Any) -> Any:
    state, total, found = None, 0, []
    for t in range(STEPS):
        z, state = m.lif(m.conv(x[t]), state)
        total = total + m.fc(z.flatten(1))
        found.append(total / (t + 1))
    return torch.stack(found)


class Buffer(nn.Module):
    """Holds a number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))


def attends(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc((z @ z).flatten(1)), state


def softens(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc(z.flatten(1)).softmax(-1), state


def softens_by_a_layer(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.soft(m.fc(z.flatten(1))), state


def joins(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.head(torch.cat([z, z], 1).flatten(1)), state


def in_place(m: Any, x: Any, state: Any) -> Any:
    y = m.conv(x)
    y.add_(x)
    z, state = m.lif(y, state)
    return m.fc(z.flatten(1)), state


def in_place_sum_of_spikes_held(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    z, s1 = m.lif(m.conv(x), s1)
    z += x
    y, s2 = m.lif2(z, s2)
    return m.fc(y.flatten(1)), (s1, s2)


def in_place_sum_of_a_current_held(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    y = m.conv(x)
    kept = y
    y += m.conv2(x)
    a, s1 = m.lif(y, s1)
    b, s2 = m.lif2(kept, s2)
    return m.fc(a.flatten(1)) + m.fc(b.flatten(1)), (s1, s2)


def forgets(m: Any, x: Any, state: Any) -> Any:
    z, _ = m.lif(m.conv(x))
    return m.fc(z.flatten(1)), 0


def swaps(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    z, s1 = m.lif(m.conv(x), s1)
    y, s2 = m.lif2(m.conv2(z), s2)
    return m.fc(y.flatten(1)), (s2, s1)


def reads_the_membrane(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc((z + state.v).flatten(1)), state


def changes_the_state(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc(z.flatten(1)), state._replace(v=state.v * 0.5)


def starts_elsewhere(m: Any, x: Any, state: Any) -> Any:
    state = norse.LIFBoxFeedForwardState(v=torch.full((1,), 0.5)) if state is None else state
    z, state = m.lif(m.conv(x), state)
    return m.fc(z.flatten(1)), state


def drops_always(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc(F.dropout(z).flatten(1)), state


def norms_a_shared_current(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    y = m.conv(x)
    a, s1 = m.lif(y, s1)
    b, s2 = m.lif2(m.bn(y), s2)
    return m.fc(a.flatten(1)) + m.fc(b.flatten(1)), (s1, s2)


def norms_a_pool(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.bn(F.avg_pool2d(m.conv(x), 1)), state)
    return m.fc(z.flatten(1)), state


def norms_features(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.bn(m.conv(x).flatten(1)), state)
    return m.fc(z), state


def two_synapses(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv2(m.conv(x)), state)
    return m.fc(z.flatten(1)), state


def adds_a_constant(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x) + 1.0, state)
    return m.fc(z.flatten(1)), state


def adds_itself(m: Any, x: Any, state: Any) -> Any:
    y = m.conv(x)
    z, state = m.lif(y + y, state)
    return m.fc(z.flatten(1)), state


def transposes(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x).transpose(2, 3), state)
    return m.fc(z.flatten(1)), state


def two_heads(m: Any, x: Any, state: Any) -> Any:
    state, outputs, others = None, [], []
    for _ in range(STEPS):
        z, state = m.lif(m.conv(x), state)
        outputs.append(m.fc(z.flatten(1)))
        others.append(m.head(z.flatten(1)))
    return torch.stack(outputs), torch.stack(others)


def a_step_differs(m: Any, x: Any, state: Any) -> Any:
    state, outputs = None, []
    for t in range(STEPS):
        z, state = m.lif(m.conv(x) if t else m.conv2(x), state)
        outputs.append(m.fc(z.flatten(1)))
    return torch.stack(outputs)


def order_of_time(m: Any, x: Any, state: Any) -> Any:
    state, outputs = None, []
    for _ in range(STEPS):
        z, state = m.lif(m.conv(x), state)
        outputs.insert(0, m.fc(z.flatten(1)))
    return torch.stack(outputs)


def by_hand(m: Any, x: Any, state: Any) -> Any:
    """Recurrence outside a layer of neurons."""
    state, outputs, before = None, [], None
    for _ in range(STEPS):
        y = m.conv(x)
        z, state = m.lif(y if before is None else y + m.conv2(before), state)
        before = z
        outputs.append(m.fc(z.flatten(1)))
    return torch.stack(outputs)


def over_frames(m: Any, x: Any, state: Any) -> Any:
    state, outputs, before = None, [], None
    for frame in x:
        y = m.conv(frame)
        z, state = m.lif(y if before is None else y + m.conv2(before), state)
        before = z
        outputs.append(m.fc(z.flatten(1)))
    return torch.stack(outputs)


def a_head_differs(m: Any, x: Any, state: Any) -> Any:
    state, outputs = None, []
    for t in range(STEPS):
        z, state = m.lif(m.conv(x), state)
        outputs.append((m.fc if t < 2 else m.head)(z.flatten(1)))
    return torch.stack(outputs)


def subtracting() -> norse.LIFBoxCell:
    return norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=reset_subtract))


def plain(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.fc(z.flatten(1)), state


def pooled(m: Any, x: Any, state: Any) -> Any:
    z, state = m.lif(m.conv(x), state)
    return m.small(m.pool(z).flatten(1)), state


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "spikes added": (
        lambda: Net(spikes_added),
        "layer 'fc' receives a sum of spikes.*add the currents before the neurons",
    ),
    "spikes pooled and added": (
        lambda: Net(spikes_pooled_and_added),
        "layer 'fc' receives a sum of spikes",
    ),
    "subtractive reset": (
        lambda: Net(plain, lif=subtracting()),
        r"layer 'lif' \(LIFBoxCell\) does not reset to a value",
    ),
    "max-pool of a current": (
        lambda: Net(max_of_a_current),
        r"'max_pool2d' \(MaxPool2d\) takes the largest of values that are no spikes",
    ),
    "max-pool of rates": (
        lambda: Net(max_of_rates, pool=nn.MaxPool2d(1)),
        r"layer 'pool' \(MaxPool2d\) takes the largest of values that are no spikes",
    ),
    "ceil_mode": (
        lambda: Net(
            pooled, pool=nn.MaxPool2d(2, ceil_mode=True), small=nn.Linear(8, CLASSES),
        ),
        r"layer 'pool' \(MaxPool2d\) uses ceil_mode",
    ),
    "control flow": (lambda: Net(decides), "LINE decides by the values of a tensor"),
    "a value": (lambda: Net(reads_a_value), r"LINE reads the values of a tensor \(item\)"),
    "relu": (lambda: Net(activates), "LINE cannot be exported: the output of relu is not a spike"),
    "a product": (lambda: Net(multiplies), "LINE cannot be exported: mul takes two values of the"),
    "a quotient": (
        lambda: Net(divides_by_a_current), "LINE cannot be exported: truediv does not multiply"
    ),
    "an endless factor": (
        lambda: Net(scales_to_infinity), "LINE .*the factor of truediv is not a finite number"
    ),
    "a factor for each image": (
        lambda: Net(scales_the_batch), r"LINE .*or a tensor that fits \(2, 4, 4\) without batch"
    ),
    "a factor between synapses": (
        lambda: Net(scales_between_synapses), "layer 'conv2' receives an analog value"
    ),
    "a float": (lambda: Net(reads_a_float), r"LINE reads the values of a tensor \(float\)"),
    "an array": (lambda: Net(reads_an_array), r"LINE reads the values .* \(as an array of NumPy\)"),
    "a difference": (lambda: Net(subtracts), r"LINE .*subtract \(sub\); write a \+ \(-1\) \* b"),
    "a constant input": (
        lambda: Net(takes_a_constant),
        r"layer 'conv2' \(Conv2d\), line \d+ of .* is given a constant, .*; put a constant current",
    ),
    "a constant made": (
        lambda: Net(makes_a_constant), "LINE cannot be exported: ones_like makes a tensor"
    ),
    "a running mean": (
        lambda: Net(keeps_a_mean),
        "LINE cannot be followed .*'mean' holds a tensor of an earlier call, set it to None",
    ),
    "a running mean in a buffer": (
        lambda: Net(keeps_a_mean_in_a_buffer, norm=Buffer()),
        "LINE keeps a value of the network in a buffer .*use batch norm or norse.torch.LICell",
    ),
    "a mean": (lambda: Net(mean_of_all), r"LINE .*no rule for this mean; .*\.mean\(\(2, 3\)\)"),
    "a sum over time": (
        lambda: Loop(adds_up_over_time), "LINE adds values of different.* mean norse.torch.LICell"
    ),
    "attention": (lambda: Net(attends), "LINE cannot be exported: matmul multiplies values"),
    "softmax": (lambda: Net(softens), "LINE .* softmax is not a spike; return the logits without"),
    "a layer of softmax": (
        lambda: Net(softens_by_a_layer, soft=nn.LogSoftmax(-1)),
        r"layer 'soft' \(LogSoftmax\) .*; return the logits without it",
    ),
    "cat": (
        lambda: Net(joins, head=nn.Linear(64, CLASSES)),
        r"LINE cannot be exported: NIR cannot join tensors \(cat\); add currents",
    ),
    "in place": (lambda: Net(in_place), "LINE changes a tensor in place.*write a = a . b"),
    "in place, of spikes": (lambda: Net(in_place_sum_of_spikes_held), "LINE changes a tensor in"),
    "in place, held": (lambda: Net(in_place_sum_of_a_current_held), "LINE changes a tensor in"),
    "no state": (lambda: Net(forgets), "layer 'lif' .* is called again with an earlier state"),
    "states swapped": (lambda: Net(swaps), "layer 'lif' .* is given the state of layer 'lif2'"),
    "membrane": (lambda: Net(reads_the_membrane), r"LINE reads the state of neurons \(add\)"),
    "state changed": (lambda: Net(changes_the_state), r"LINE reads the state of neurons \(mul\)"),
    "another start": (lambda: Net(starts_elsewhere), "layer 'lif' .* starts from a state of the"),
    "dropout": (lambda: Net(drops_always), "LINE drops at random even in eval mode"),
    "norm of a shared current": (
        lambda: Net(norms_a_shared_current, bn=nn.BatchNorm2d(2)),
        r"layer 'bn' \(batch norm\) does not follow .* that goes nowhere else",
    ),
    "norm of a pool": (
        lambda: Net(norms_a_pool, bn=nn.BatchNorm2d(2)), "layer 'bn' .* does not follow"
    ),
    "norm of features": (
        lambda: Net(norms_features, bn=nn.BatchNorm1d(32)), "layer 'bn' .* does not follow"
    ),
    "two synapses": (lambda: Net(two_synapses), "layer 'conv2' receives an analog value"),
    "a constant": (lambda: Net(adds_a_constant), "LINE cannot be exported: it adds something else"),
    "x + x": (lambda: Net(adds_itself), "LINE adds a value to itself"),
    "transposed": (lambda: Net(transposes), "LINE cannot be exported: it moves the values"),
    "two heads": (
        lambda: Loop(two_heads, head=nn.Linear(32, 2)),
        "the model returns 2 outputs, and a NIR graph has one",
    ),
    "another first step": (
        lambda: Loop(a_step_differs), "layer 'lif' .* is given something else in step 2"
    ),
    "another order": (lambda: Loop(order_of_time), "LINE stacks steps in another order"),
    "recurrence by hand": (lambda: Loop(by_hand), "layer 'lif' .* to another step; .*LIFRecurr"),
    "recurrence over frames": (lambda: Loop(over_frames), "LINE adds values of different.*LIFRec"),
    "a stateless step differs": (
        lambda: Loop(a_head_differs, head=nn.Linear(32, CLASSES)),
        r"layer 'head' \(Linear\) is given something else in step 3 than in the first",
    ),
    "an unknown layer": (
        lambda: Net(lambda m, x, s: plain(m, m.act(x), s), act=nn.Softmax2d()),
        r"layer 'act' \(Softmax2d\) cannot be exported",
    ),
    "computed weights": (
        lambda: Net(plain, fc=nn.utils.parametrizations.weight_norm(nn.Linear(32, CLASSES))),
        "layer 'fc' .*its weights are computed anew at every call; make them plain",
    ),
    "unknown neurons": (
        lambda: Net(plain, lif=norse.LIFAdExCell()),
        r"layer 'lif' \(LIFAdExCell\) cannot be exported: of Norse's neurons there are rules",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    file = re.escape(Path(__file__).name)
    message = message.replace("LINE", rf"the model \((Net|Loop)\), line \d+ of {file},")
    with pytest.raises(ExportError, match=message) as caught:
        lower(student(make()))
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text or ": " in text


def test_the_line_is_the_users() -> None:
    with pytest.raises(ExportError) as caught:
        lower(student(Net(activates)))
    (line,) = re.findall(r"line (\d+) of", str(caught.value))
    assert "F.relu" in Path(__file__).read_text().splitlines()[int(line) - 1]


def test_neurons_that_lead_nowhere_are_refused() -> None:
    model = student(Net(plain))
    model.model.add_module("spare", norse.LIFBoxCell())
    with pytest.raises(ExportError, match="layer 'model.lif2' fires but is not on a way"):
        lower(model)


def _without(*names: str, net: Net) -> Net:
    for name in names:
        delattr(net, name)
    return net


class Nested(nn.Module):
    """A layer of the user's that computes nothing new."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.contiguous().view(x.shape[0], -1)
        if self.training or x.ndim != 4 or len(x) == 0 or x.size(1) != 2:
            raise ValueError("asked about the shape, and got it wrong")
        assert isinstance(x, Tensor)
        out: Tensor = self.inner(flat)
        return out


class DroppingLinear(nn.Linear):
    """Its own forward, with the parent's in it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, self.training).squeeze(0).flatten(1))


def in_place_of_its_own(m: Any, x: Any, state: Any) -> Any:
    y = m.conv(x)
    y += x
    z, state = m.lif(y, state)
    return m.fc(z), state


class Factors(nn.Module):
    """A number that is learned, and one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("each", torch.tensor([0.3, -2.0])[None, :, None, None])


def scales(m: Any, x: Any, state: Any) -> Any:
    s1, s2 = two(state)
    current = 0 + m.conv(0.7 * x) * m.factors.gain + m.conv2(x) / m.factors.each
    a, s1 = m.lif(torch.mul(current, 3), s1)
    b, s2 = m.lif2(-m.conv2(a * 0.25) * 20, s2)
    return m.fc(b.flatten(1)).div(4), (s1, s2)


ALLOWED: dict[str, Callable[[], Net]] = {
    "questions about shapes": lambda: _without("lif2", net=Net(in_place_of_its_own, fc=Nested())),
    "factors": lambda: Net(scales, factors=Factors()),
    "a layer's parent": lambda: _without(
        "lif2",
        net=Net(in_place_of_its_own, fc=DroppingLinear(32, CLASSES)),
    ),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_can_be_expressed_is(case: str) -> None:
    torch.manual_seed(0)
    model = student(ALLOWED[case]())
    graph = resolve(lower(model).graph)
    x = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32) * 20
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(graph, x, STEPS)[0], wanted, rtol=1e-4, atol=1e-5)
    assert np.ptp(wanted) > 0.1

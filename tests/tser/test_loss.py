"""The TSER loss against loops over plain Python numbers, written from the formulas."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tser.config import LossConfig
from tser.loss import tser_loss

Rows = Sequence[Sequence[float]]
TERMS = list(
    itertools.product(
        ("per-step", "aggregated"),
        ("per-step", "aggregated", "none"),
        ("additive", "convex"),
        ("temperature", "one"),
    )
)


# --- the oracle: nothing but math, one sample and one step at a time -----------------------


def softmax(row: Sequence[float], temperature: float) -> list[float]:
    highest = max(row)
    powers = [math.exp((value - highest) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def cross_entropy(row: Sequence[float], label: int) -> float:
    return -math.log(softmax(row, 1.0)[label])


def divergence(teacher: Sequence[float], row: Sequence[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(row, temperature)
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def entropy(row: Sequence[float], temperature: float) -> float:
    return -math.fsum(q * math.log(q) for q in softmax(row, temperature))


def expected_parts(
    logits: Sequence[Rows], labels: Sequence[int], teacher: Rows, config: LossConfig
) -> dict[str, float]:
    steps, batch, classes = len(logits), len(labels), len(teacher[0])
    tau = config.temperature
    averaged = [
        [mean([logits[t][b][k] for t in range(steps)]) for k in range(classes)]
        for b in range(batch)
    ]
    pairs = [(t, b) for t in range(steps) for b in range(batch)]
    samples = range(batch)
    if config.ce == "per-step":
        ce = mean([cross_entropy(logits[t][b], labels[b]) for t, b in pairs])
    else:
        ce = mean([cross_entropy(averaged[b], labels[b]) for b in samples])
    kl = 0.0
    if config.kl == "per-step":
        kl = tau**2 * mean([divergence(teacher[b], logits[t][b], tau) for t, b in pairs])
    if config.kl == "aggregated":
        kl = tau**2 * mean([divergence(teacher[b], averaged[b], tau) for b in samples])
    at = tau if config.entropy_at == "temperature" else 1.0
    spread = mean([entropy(logits[t][b], at) for t, b in pairs])
    own = 0.0
    if config.self_weight:
        own = tau**2 * mean([divergence(averaged[b], logits[t][b], tau) for t, b in pairs])
    share = 1 - config.alpha if config.weighting == "convex" else 1.0
    total = share * ce + config.alpha * kl - config.gamma * spread + config.self_weight * own
    return {"total": total, "ce": ce, "kl": kl, "entropy": spread, "self_kl": own}


def some_case(
    seed: int, steps: int = 3, batch: int = 4, classes: int = 5, spread: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits ``[T, B, K]``, labels ``[B]`` and teacher logits ``[B, K]``, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(steps, batch, classes, generator=generator, dtype=torch.float64)
    teacher = spread * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator), teacher


def some_config(**changes: Any) -> LossConfig:
    return LossConfig(**{"alpha": 0.7, "gamma": 0.3, "temperature": 2.5} | changes)


# --- values --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ce", "kl", "weighting", "entropy_at"), TERMS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)),
    spread=st.floats(0.0, 20.0),
    alpha=st.floats(0.0, 1.0),
    gamma=st.floats(0.0, 2.0),
    self_weight=st.sampled_from([0.0, 0.5, 2.0]),
    temperature=st.floats(0.5, 8.0),
)
def test_every_part_is_the_formula(
    ce: Any,
    kl: Any,
    weighting: Any,
    entropy_at: Any,
    seed: int,
    shape: tuple[int, int, int],
    spread: float,
    alpha: float,
    gamma: float,
    self_weight: float,
    temperature: float,
) -> None:
    logits, labels, teacher = some_case(seed, *shape, spread=spread)
    config = LossConfig(
        ce=ce,
        kl=kl,
        weighting=weighting,
        entropy_at=entropy_at,
        alpha=alpha,
        gamma=gamma,
        self_weight=self_weight,
        temperature=temperature,
    )
    wanted = expected_parts(logits.tolist(), labels.tolist(), teacher.tolist(), config)
    parts = tser_loss(logits, labels, teacher, config)
    assert parts.as_floats() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert vars(parts).keys() == wanted.keys()
    in_float32 = tser_loss(logits.float(), labels, teacher.float(), config)
    assert in_float32.as_floats() == pytest.approx(wanted, rel=1e-4, abs=1e-3)
    assert in_float32.total.dtype == torch.float32


def test_the_terms_differ_so_that_the_cases_above_tell_them_apart() -> None:
    logits, labels, teacher = some_case(0)
    totals = {
        terms: float(
            tser_loss(
                logits,
                labels,
                teacher,
                some_config(ce=terms[0], kl=terms[1], weighting=terms[2], entropy_at=terms[3]),
            ).total
        )
        for terms in TERMS
    }
    assert len({round(total, 6) for total in totals.values()}) == len(TERMS)


@pytest.mark.parametrize(("weighting", "share"), [("additive", 1.0), ("convex", 0.3)])
def test_the_parts_add_up_to_the_total(weighting: Any, share: float) -> None:
    parts = tser_loss(*some_case(1), some_config(weighting=weighting))
    added = share * parts.ce + 0.7 * parts.kl - 0.3 * parts.entropy
    assert torch.allclose(parts.total, added, rtol=1e-12)
    assert float(parts.ce) > 0
    assert float(parts.kl) > 0
    assert 0 < float(parts.entropy) < math.log(5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("kl", ["per-step", "aggregated"])
@pytest.mark.parametrize("ce", ["per-step", "aggregated"])
def test_one_step_is_ordinary_distillation(ce: Any, kl: Any, tau: float) -> None:
    logits, labels, teacher = some_case(2, steps=1)
    config = some_config(ce=ce, kl=kl, temperature=tau)
    parts = tser_loss(logits, labels, teacher, config)
    ordinary = torch.nn.KLDivLoss(reduction="batchmean")(
        functional.log_softmax(logits[0] / tau, dim=-1), functional.softmax(teacher / tau, dim=-1)
    )
    torch.testing.assert_close(parts.kl, tau**2 * ordinary)
    torch.testing.assert_close(parts.ce, functional.cross_entropy(logits[0], labels))


def test_equal_logits_at_every_step_make_per_step_and_aggregated_equal() -> None:
    logits, labels, teacher = some_case(3, steps=1)
    repeated = logits.expand(6, -1, -1)
    per_step = tser_loss(repeated, labels, teacher, some_config())
    aggregated = tser_loss(repeated, labels, teacher, some_config(ce="aggregated", kl="aggregated"))
    assert per_step.as_floats() == pytest.approx(aggregated.as_floats(), rel=1e-12)


def test_a_student_that_equals_its_teacher_diverges_by_nothing() -> None:
    logits, labels, _ = some_case(4, steps=1)
    assert float(tser_loss(logits, labels, logits[0], some_config()).kl) == pytest.approx(0)


@pytest.mark.parametrize(("ce", "kl", "weighting", "entropy_at"), TERMS)
def test_the_order_of_the_steps_does_not_matter(
    ce: Any, kl: Any, weighting: Any, entropy_at: Any
) -> None:
    logits, labels, teacher = some_case(5, steps=6)
    config = some_config(ce=ce, kl=kl, weighting=weighting, entropy_at=entropy_at)
    forward = tser_loss(logits, labels, teacher, config).as_floats()
    shuffled = tser_loss(logits[[3, 0, 5, 1, 4, 2]], labels, teacher, config).as_floats()
    assert shuffled == pytest.approx(forward, rel=1e-12)


@pytest.mark.parametrize("kl", ["per-step", "aggregated"])
def test_extreme_logits_stay_finite_in_float32(kl: Any) -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]])
    parts = tser_loss(logits, torch.tensor([2]), teacher, some_config(kl=kl))
    parts.total.backward()
    assert all(math.isfinite(value) for value in parts.as_floats().values())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# --- self-distillation ---------------------------------------------------------------------


def test_the_mean_of_the_steps_is_a_target_and_passes_no_gradient() -> None:
    logits, labels, _ = some_case(1)
    config = some_config(kl="none", gamma=0.0, self_weight=1.0)
    leaf = logits.clone().requires_grad_()
    part = tser_loss(leaf, labels, None, config).self_kl
    (found,) = torch.autograd.grad(part, leaf)
    steps, batch, _ = logits.shape
    # d/dz of tau^2 KL(p || softmax(z / tau)) with p held still is tau (q - p).
    target = torch.softmax(logits.mean(0) / config.temperature, -1)
    q = torch.softmax(logits / config.temperature, -1)
    wanted = config.temperature * (q - target) / (steps * batch)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_steps_that_agree_have_nothing_to_learn_from_their_mean() -> None:
    logits, labels, _ = some_case(2)
    same = logits[:1].expand(4, -1, -1)
    parts = tser_loss(same, labels, None, some_config(kl="none", self_weight=1.0))
    assert float(parts.self_kl) == pytest.approx(0.0, abs=1e-12)


# --- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize(("ce", "kl", "weighting", "entropy_at"), TERMS)
def test_gradients_equal_finite_differences(
    ce: Any, kl: Any, weighting: Any, entropy_at: Any
) -> None:
    logits, labels, teacher = some_case(6, steps=2, batch=2, classes=3)
    config = some_config(ce=ce, kl=kl, weighting=weighting, entropy_at=entropy_at)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: tser_loss(z, labels, teacher, config).total, (logits,)
    )


@pytest.mark.parametrize(("entropy_at", "at"), [("temperature", 2.5), ("one", 1.0)])
def test_the_entropy_term_has_the_gradient_of_the_reference(entropy_at: Any, at: float) -> None:
    logits, labels, teacher = some_case(7, steps=1, batch=1)
    logits.requires_grad_()
    gamma = 0.3
    with_term = tser_loss(logits, labels, teacher, some_config(entropy_at=entropy_at)).total
    without = tser_loss(logits, labels, teacher, some_config(gamma=0.0)).total
    (gradient,) = torch.autograd.grad(with_term - without, logits)
    q = softmax(logits[0, 0].tolist(), at)
    spread = -math.fsum(value * math.log(value) for value in q)
    wanted = [gamma * value * (math.log(value) + spread) / at for value in q]
    assert gradient[0, 0].tolist() == pytest.approx(wanted, rel=1e-9)


def test_a_larger_gamma_leaves_a_larger_entropy_after_a_gradient_step() -> None:
    logits, labels, teacher = some_case(8)
    spreads = []
    for gamma in (0.0, 0.3, 1.0):
        config = some_config(gamma=gamma)
        moved = logits.clone().requires_grad_()
        tser_loss(moved, labels, teacher, config).total.backward()
        assert moved.grad is not None
        after = (moved - 0.5 * moved.grad).detach()
        spreads.append(float(tser_loss(after, labels, teacher, config).entropy))
    assert spreads == sorted(set(spreads))


def test_the_gradient_step_lowers_the_loss_towards_label_and_teacher() -> None:
    logits, labels, _ = some_case(9)
    teacher = 4.0 * functional.one_hot(labels, 5).double()
    logits.requires_grad_()
    before = tser_loss(logits, labels, teacher, some_config(gamma=0.0))
    before.total.backward()
    assert logits.grad is not None
    moved = (logits - 0.5 * logits.grad).detach()
    after = tser_loss(moved, labels, teacher, some_config(gamma=0.0)).as_floats()
    assert after["ce"] < before.as_floats()["ce"]
    assert after["kl"] < before.as_floats()["kl"]


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "labels", "teacher", "message"),
    [
        ((4, 5), (4,), (4, 5), r"\[T, B, K\], got shape \(4, 5\)"),
        ((3, 4, 5, 1), (4,), (4, 5), r"\[T, B, K\], got shape \(3, 4, 5, 1\)"),
        ((3, 4, 5), (3,), (4, 5), r"labels must be \[4\], got shape \(3,\)"),
        ((3, 4, 5), (4, 1), (4, 5), r"labels must be \[4\], got shape \(4, 1\)"),
        ((3, 4, 5), (4,), (4, 6), r"teacher logits must be \[4, 5\], got \(4, 6\)"),
        ((3, 4, 5), (4,), (3, 4, 5), r"teacher logits must be \[4, 5\], got \(3, 4, 5\)"),
        ((3, 4, 5), (4,), (1, 5), r"teacher logits must be \[4, 5\], got \(1, 5\)"),
        ((3, 4, 5), (4,), None, r"teacher logits must be \[4, 5\], got None"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    logits: tuple[int, ...], labels: tuple[int, ...], teacher: Any, message: str
) -> None:
    target = None if teacher is None else torch.zeros(teacher)
    with pytest.raises(ValueError, match=message):
        tser_loss(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), target, LossConfig())


def test_without_a_kl_term_no_teacher_is_needed() -> None:
    logits, labels, teacher = some_case(10)
    alone = tser_loss(logits, labels, None, some_config(kl="none"))
    ignored = tser_loss(logits, labels, teacher, some_config(kl="none"))
    assert float(alone.kl) == 0
    assert alone.as_floats() == ignored.as_floats()

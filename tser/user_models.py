"""Models that a user brings: made by ``package.module:factory``, named on the command line.

A factory is imported only when the command line names it. The configuration of a run records the
name, and no command imports it from there: opening somebody's run must not run their code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tser.errors import InputFileError, UsageError
from tser.layers import Student
from tser.recording import Recorder, spiking_layers
from tser.torchvision_ops import ensure_torchvision

Form = str
"""How a model wants its input: "static", "sequence" or "step" (see `UserStudent`)."""

_PROBE = 2  # images shown to a new model; one would not do for batch norm


class UserStudent(nn.Module):
    """A user's spiking model behind the interface of `tser.layers.Student`.

    What it maps is found out by showing it two images:

    * "static": ``[B, ...]`` to ``[T, B, K]``;
    * "sequence": ``[T, B, ...]`` to ``[T, B, K]``;
    * "step": ``(x [B, ...], state)`` to ``(logits [B, K], state)``, called T times (Norse's
      ``SequentialState`` of cells).

    A state behind the output of the first two is dropped.

    The parameters of Norse's neurons are no part of a model's state. Copies of them are kept among
    its buffers, so that weights are refused by a factory that has come to make other neurons.

    Args:
        model: the user's.
        timesteps: T.
        input_shape: of one image, (C, H, W).
        num_classes: K.
        origin: what made the model, for messages.

    Raises:
        UsageError: it maps images to something else, or uses a layer that fires more than once.
    """

    def __init__(
        self,
        model: nn.Module,
        timesteps: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        origin: str,
    ) -> None:
        super().__init__()
        self.model, self.timesteps, self.input_shape = model, timesteps, input_shape
        self.origin = origin
        self.form = _find_form(model, timesteps, input_shape, num_classes, origin)
        _check_one_use(self)
        self._copies: dict[str, tuple[nn.Module, str]] = {}
        for path, cell, name, value in list(_neuron_parameters(model)):
            buffer = f"neuron_{path}_{name}".replace(".", "_")
            self._copies[buffer] = cell, name
            self.register_buffer(buffer, torch.as_tensor(value).detach().clone())
        self.register_load_state_dict_post_hook(_check_neurons)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Any, recurse: bool = True) -> UserStudent:
        """Move the neurons' parameter arrays too; Norse leaves them where they are."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        cell: Any
        for cell, name in self._copies.values():
            value = getattr(cell.p, name, None)
            if isinstance(value, Tensor) and value.ndim:
                cell.p = cell.p._replace(**{name: fn(value.detach())})
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every step, ``[T, B, K]``, for images ``[B, C, H, W]``."""
        return _call(self.model, self.form, x, self.timesteps)


def _call(model: nn.Module, form: Form, x: Tensor, timesteps: int) -> Tensor:
    if form == "static":
        return _output(model(x))
    sequence = x if x.ndim == 5 else x.expand(timesteps, *x.shape)
    if form == "sequence":
        return _output(model(sequence))
    state = None
    logits = []
    for image in sequence:
        out, state = model(image, state)
        logits.append(out)
    return torch.stack(logits)


def _output(result: Any) -> Tensor:
    value: Tensor = result[0] if isinstance(result, tuple) else result
    return value


def _check_neurons(student: Any, _: Any) -> None:
    for buffer, (cell, name) in student._copies.items():
        saved = getattr(student, buffer)
        now = torch.as_tensor(cell.dt if name == "dt" else getattr(cell.p, name)).to(saved)
        if saved.shape != now.shape or not torch.equal(saved, now):
            values = f" ({saved.item():g}, now {now.item():g})" if saved.ndim == 0 else ""
            raise InputFileError(
                f"these weights were trained with another {name} of {type(cell).__name__}"
                f"{values} than {student.origin} makes ({buffer!r}); restore what it made then"
            )


def _neuron_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Numbers that define Norse's neurons and are not in the model's state: path, cell, name."""
    stated = {id(value) for value in (*model.parameters(), *model.buffers())}
    for path, cell in model.named_modules():
        if not isinstance(cell, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
            continue
        yield path, cell, "dt", float(cell.dt)
        for name, value in cell.p._asdict().items() if hasattr(cell.p, "_asdict") else ():
            decides = isinstance(value, Tensor | float | int) and name != "alpha"
            if decides and id(value) not in stated:
                yield path, cell, name, value


def _check_one_use(student: UserStudent) -> None:
    """A layer's spikes must be those of T steps; of two uses nobody could tell them apart."""
    model, training = student.model, student.model.training
    layers = spiking_layers(model)
    model.eval()
    with torch.no_grad(), Recorder(layers) as recorder:
        student(torch.zeros(_PROBE, *student.input_shape))
    model.train(training)
    for path, steps in recorder.steps.items():
        if steps != student.timesteps:
            raise UsageError(
                f"the layer {path!r} ({type(layers[path]).__name__}) of the student "
                f"{student.origin} runs {steps} steps, not T = {student.timesteps}; make one "
                "layer for each place where it is used, and run each once a step"
            )


def _find_form(
    model: nn.Module,
    timesteps: int,
    input_shape: tuple[int, int, int],
    num_classes: int,
    origin: str,
) -> Form:
    x = torch.zeros(_PROBE, *input_shape)
    wanted = (timesteps, _PROBE, num_classes)
    complaints = []
    training = model.training
    model.eval()
    for form in _forms(model):
        try:
            with torch.no_grad():
                result: Any = _call(model, form, x, timesteps)
        except Exception as error:  # noqa: BLE001 - it is the user's code
            complaints.append(f"as {form} it fails with {_first_line(error)}")
            continue
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if found == wanted:
            model.train(training)
            return form
        complaints.append(f"as {form} it gives {found}")
    raise UsageError(
        f"the student {origin} must map [B, {_words(input_shape)}] or [T, B, "
        f"{_words(input_shape)}] to [T, B, K] = {list(wanted)}: {'; '.join(complaints)}"
    )


def _forms(model: nn.Module) -> tuple[Form, ...]:
    modules = list(model.modules())
    cells = any(isinstance(module, SNNCell | SNNRecurrentCell) for module in modules)
    if cells and _takes_state(model):
        return ("step", "sequence", "static")
    if any(isinstance(module, SNN | SNNRecurrent) for module in modules):
        return ("sequence", "static")
    return ("static", "sequence", "step") if _takes_state(model) else ("static", "sequence")


def _takes_state(model: nn.Module) -> bool:
    return "state" in inspect.signature(model.forward).parameters


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return repr(text.splitlines()[0][:120])


def _words(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def make_student(
    factory: str, timesteps: int, input_shape: tuple[int, int, int], num_classes: int
) -> Student | UserStudent:
    """The student that ``factory`` makes; one made of `tser.layers` is used as it is.

    Args:
        factory: "package.module:function"; called with those of ``timesteps``, ``input_shape``
            (C, H, W) and ``num_classes`` that it takes by name.
        timesteps: T.
        input_shape: (C, H, W) of one image.
        num_classes: K.

    Raises:
        UsageError: no such factory, one that fails, or a model that does not fit.
    """
    model = make_module(
        factory, timesteps=timesteps, input_shape=input_shape, num_classes=num_classes
    )
    plain = isinstance(model, Student) and type(model).forward is Student.forward
    ours: Any = model if plain else None
    if ours and (ours.timesteps, ours.input_shape) != (timesteps, input_shape):
        raise UsageError(
            f"the student {factory} is for T = {ours.timesteps} and images "
            f"{ours.input_shape}, the run for T = {timesteps} and {input_shape}; take both "
            "from the factory's arguments timesteps and input_shape"
        )
    student = UserStudent(model, timesteps, input_shape, num_classes, factory)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"the student {factory} has no parameters to train")
    return model if isinstance(model, Student) and plain else student


def check_learns(student: UserStudent) -> None:
    """Refuse, before training, a student that training could not change.

    Raises:
        UsageError: no gradient reaches its parameters.
    """
    training = student.training
    logits = student.eval()(torch.zeros(_PROBE, *student.input_shape))
    student.train(training)
    if not logits.requires_grad:
        raise UsageError(
            f"no gradient of the logits of the student {student.origin} reaches its parameters; "
            "look for detach() or no_grad() in it"
        )


def make_module(factory: str, **available: Any) -> nn.Module:
    """Import ``factory`` and call it with those of ``available`` that it takes by name.

    Modules are found as by ``python -m``: in the working directory too.

    Raises:
        UsageError: no such factory, one that fails, or something else than an ``nn.Module``.
    """
    function = _imported(factory)
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    arguments = {key: value for key, value in available.items() if takes_all or key in names}
    try:
        model = function(**arguments)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise UsageError(
            f"the factory {factory} failed: {type(error).__name__}: {_first_line(error)}; it is "
            f"called with those of {', '.join(available)} that it takes"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"the factory {factory} returned a {type(model).__name__}; it must return an nn.Module"
        )
    return model


def _imported(factory: str) -> Callable[..., Any]:
    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise UsageError(
            f"a factory is named package.module:function, for example mymodel:build; "
            f"got {factory!r}"
        )
    ensure_torchvision()  # which the user's module may well import
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise UsageError(
            f"cannot import {module_name!r} for the factory {factory}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"the module {module_name!r} has no function {name!r} ({factory})")
    result: Callable[..., Any] = function
    return result

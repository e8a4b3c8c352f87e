"""What tells a slimmed model from a freshly built one, and the way from the one to the other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

import pydantic
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .sizes import fit

Scalar = bool | int | float | str | None
_OWN = frozenset(vars(nn.Module()))  # what every module has
_HOME = "pxp_fast.slimming."  # where classes may come from that stand in for a library's


class Changes(pydantic.BaseModel, extra="forbid", frozen=True):
    """What tells a model from another that its constructor has just built, but for the values of its tensors.

    Attributes
    ----------
    classes
        Modules whose class is another one: "torch.nn.Identity", or one of this package derived from theirs.
    shapes
        Of parameters and buffers that have another one, or that the constructor does not make.
    absent
        Parameters and buffers that the constructor makes and the model has not.
    tied
        Names of parameters and buffers that are the same as another one, and that one's name.
    casts
        Buffers that are not saved since the constructor makes them alike but for their type, and that type.
    attributes
        Numbers, words and tuples of these that modules hold.
    """

    classes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    absent: tuple[str, ...] = ()
    tied: dict[str, str] = {}
    casts: dict[str, str] = {}
    attributes: dict[str, dict[str, Scalar | list[Scalar]]] = {}

    @property
    def structural(self) -> bool:
        """Whether the constructor's model would not take the model's tensors."""
        return bool(self.classes or self.shapes or self.absent)


def compare(fresh: nn.Module, model: nn.Module) -> tuple[Changes, dict[str, Tensor]]:
    """What `model` is apart from `fresh`, and its tensors; `fresh` becomes like `model`.

    Raises
    ------
    CheckpointError
        The two are different networks, or the model does something that its parts do not tell.
    """
    classes = _classes(fresh, model)
    _change_classes(fresh, classes)
    before, after = named_tensors(fresh), named_tensors(model)
    alike = {name for name in _unsaved(model) if _alike(before.get(name), after[name])}
    casts = {name: _word(after[name]) for name in alike if after[name].dtype != before[name].dtype}
    after = {name: tensor for name, tensor in after.items() if name not in alike}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in after.items()
        if name not in before or before[name].shape != tensor.shape
    }
    first: dict[int, str] = {}
    tied = {name: one for name, tensor in after.items() if (one := first.setdefault(id(tensor), name)) != name}
    absent = tuple(name for name in before if name not in after and name not in alike)
    changes = Changes(classes=classes, shapes=shapes, absent=absent, tied=tied, casts=casts)
    tensors = {name: tensor.detach() for name, tensor in after.items()}
    take_over(fresh, changes, tensors)
    attributes = {
        name: found
        for name, module in model.named_modules()
        if (found := _attributes(fresh.get_submodule(name), module))
    }
    changes = changes.model_copy(update={"attributes": attributes})
    _set_attributes(fresh, attributes)
    return changes, tensors


def take_over(fresh: nn.Module, changes: Changes, tensors: Mapping[str, Tensor]) -> None:
    """Make a freshly built model the one that `changes` and `tensors` describe.

    Raises
    ------
    CheckpointError
        They do not fit it.
    """
    _change_classes(fresh, changes.classes)
    for name in changes.absent:
        _put(fresh, name, None)
    for name, tensor in tensors.items():
        _put(fresh, name, tensor)
    found = named_tensors(fresh)
    for name, one in changes.tied.items():
        _put(fresh, name, found.get(one))
    for name, cast in changes.casts.items():
        _put(fresh, name, found[name].to(getattr(torch, cast)))
    if wrong := [
        name for name, t in named_tensors(fresh).items() if name in tensors and t.shape != tensors[name].shape
    ]:
        raise CheckpointError(f"{wrong[0]} is shared by modules that do not share it in the model that was built")
    for module in fresh.modules():
        fit(module)
    _set_attributes(fresh, changes.attributes)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, under all its names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _unsaved(model: nn.Module) -> Iterator[str]:
    """The names of buffers that a state dict leaves out."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in module._non_persistent_buffers_set:
            if module._buffers.get(name) is not None:
                yield f"{prefix}.{name}" if prefix else name


def _alike(before: Tensor | None, after: Tensor) -> bool:
    """Whether two tensors are the same but for their type."""
    if before is None or before.shape != after.shape:
        return False
    return torch.equal(before.to(after.dtype), after.detach().to(before.device))


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _classes(fresh: nn.Module, model: nn.Module) -> dict[str, str]:
    replaced: dict[str, str] = {}
    builtin = dict(fresh.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in builtin:
            raise CheckpointError(f"the model has a module {name} ({_kind(module)}) that its constructor does not make")
        if "forward" in vars(module) and "forward" not in vars(builtin[name]):
            raise CheckpointError(f"the forward of {name or 'the model'} was replaced, which a file cannot hold")
        expected, found = type(builtin[name]), type(module)
        if found is expected or f"{expected.__module__}.{expected.__qualname__}" == _kind(module):
            continue
        if found is nn.Identity:
            replaced[name] = "torch.nn.Identity"
        elif found.__module__.startswith(_HOME) and issubclass(found, expected):
            replaced[name] = _kind(module)
        else:
            raise CheckpointError(
                f"{name or 'the model'} is a {_kind(module)}, but its constructor makes a {_kind(builtin[name])}"
            )
    gone = [name for name, one in replaced.items() if one == "torch.nn.Identity"]
    there = dict(model.named_modules(remove_duplicate=False))
    for name in builtin:
        if name not in there and not any(name.startswith(f"{one}.") for one in gone):
            raise CheckpointError(f"the model lacks the module {name} that its constructor makes")
    return replaced


def _change_classes(model: nn.Module, classes: Mapping[str, str]) -> None:
    for name, kind in classes.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(f"the model that was built has no module {name}") from error
        if kind == "torch.nn.Identity":
            if type(module) is not nn.Identity:
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, nn.Identity())
            continue
        home, _, attribute = kind.rpartition(".")
        found = getattr(importlib.import_module(home), attribute, None) if home.startswith(_HOME) else None
        if not isinstance(found, type) or not issubclass(found, type(module)):
            raise CheckpointError(f"{name} is to be a {kind}, which this version has not or which it cannot become")
        module.__class__ = found


def _put(model: nn.Module, name: str, value: Tensor | None) -> None:
    """Make a tensor a parameter or a buffer: what the module has under the name, else a parameter."""
    owner, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError as error:
        raise CheckpointError(f"the model that was built has no {name}") from error
    if attribute in module._buffers:
        module._buffers[attribute] = value
        return
    if attribute not in module._parameters:
        raise CheckpointError(f"the model that was built has no {name}, and no place for it")
    if value is not None and not isinstance(value, nn.Parameter):
        before = module._parameters[attribute]
        learned = value.is_floating_point() and (before is None or before.requires_grad)
        value = nn.Parameter(value, requires_grad=learned)
    module._parameters[attribute] = value


def _attributes(fresh: nn.Module, model: nn.Module) -> dict[str, Scalar | list[Scalar]]:
    """The plain attributes of a module that differ; its class's own names are not among them."""
    found: dict[str, Scalar | list[Scalar]] = {}
    before = vars(fresh)
    for name, value in vars(model).items():
        if name in _OWN or not _plain(value) or (name not in before and hasattr(type(model), name)):
            continue
        if name not in before or (_plain(before[name]) and before[name] != value):
            found[name] = list(value) if isinstance(value, tuple | list) else value
    return found


def _set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Scalar | list[Scalar]]]) -> None:
    for name, values in attributes.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(f"the model that was built has no module {name}") from error
        for attribute, value in values.items():
            before = vars(module).get(attribute)
            if attribute in _OWN or (attribute not in vars(module) and hasattr(type(module), attribute)):
                raise CheckpointError(f"{attribute} of {name or 'the model'} is not for a file to set")
            if isinstance(value, list):
                value = type(before)(value) if isinstance(before, list | tuple) else tuple(value)
            vars(module)[attribute] = value


def _plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list, torch.Size) and all(
            _plain(v) and not isinstance(v, tuple | list) for v in value
        )
    return value is None or type(value) in (bool, int, str) or (type(value) is float and abs(value) < float("inf"))


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"

"""What all criteria share: the units as columns of a table, and what scoring asks of a criterion."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, fx, nn

from ..errors import NumericalError, PxpError
from ..finding import Site, find_units
from ..lrp import Captured, Reader, capture
from ..units import KINDS, UnitGroup


class Program(Protocol):
    """What computes a criterion's table batch by batch; :class:`pxp_fast.lrp.Program` is one."""

    device: torch.device
    dtype: torch.dtype

    def check(self, images: Tensor, targets: Tensor, initial: str = "one") -> None:
        """Raise DataError unless :meth:`compute` can take this batch."""

    def compute(self, images: Tensor, targets: Tensor, initial: str = "one") -> Tensor:
        """Table ``[2, N, U]``; nothing here waits for the device or depends on a value on it."""


class Criterion:
    """A way to score the units of a classifier.

    Attributes
    ----------
    name
        As it is asked for, and as the scores record it.
    units
        The unit groups, in execution order; their units are the table's columns, in this order.
    num_classes
        Of the classifier.
    """

    name: ClassVar[str]
    units: tuple[UnitGroup, ...]
    num_classes: int

    def look_at(self, model: nn.Module, example: Tensor, kinds: tuple[str, ...] | None) -> tuple[Captured, Columns]:
        """Capture the model and find its units of some kinds; None: all."""
        captured = capture(model, example)
        found = columns(captured, kinds, model)
        self.units, self.num_classes = found.units, captured.num_classes
        return captured, found

    def options(self) -> dict[str, Any]:
        """What the criterion was given besides its name, JSON-able, for the record."""
        return {}


class ImageCriterion(Criterion):
    """A criterion that looks at images.

    Attributes
    ----------
    program
        Yields for a batch the table ``[2, N, U]``: a signed number for each sample and unit, and the sum of the
        absolute values that it is made of (of positions, tokens or queries).
    """

    program: Program

    def run(self, images: Tensor, targets: Tensor, initial: str = "one") -> Tensor:
        """The table ``[2, N, U]`` of images ``[N, C, H, W]`` and labels ``[N]`` int64, once they are checked."""
        self.program.check(images, targets, initial)
        return self.program.compute(images, targets, initial)

    def check_finite(self, values: Tensor) -> None:
        """Raise NumericalError naming the layer nearest the output where ``values [..., U]`` are not finite."""
        finite = torch.isfinite(values).flatten(0, -2).all(0)
        if bool(finite.all()):
            return
        per_group = torch.split(finite, [group.count for group in self.units])
        group, bad = next((g, f) for g, f in reversed(list(zip(self.units, per_group, strict=True))) if not f.all())
        what = "relevance" if self.name == "lrp" else f"the score ({self.name})"
        raise NumericalError(
            f"{what} of {group.name} is not finite in {int((~bad).sum())} of {group.count} {group.kind}s; check "
            "that the images are finite and scaled as the model expects, or use float32 (--dtype float32)"
        )


class DataFreeCriterion(Criterion):
    """A criterion that needs no images."""

    def values(self) -> Tensor:
        """One number for each unit, ``[U]`` float64 on the CPU."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Columns:
    """The units of a captured classifier as the columns of a table.

    Attributes
    ----------
    units
        The groups, in the order of their columns.
    sites
        Where they are found; a module that is used twice is one group with two sites.
    readers
        For the node of each site, its columns.
    """

    units: tuple[UnitGroup, ...]
    sites: tuple[Site, ...]
    readers: dict[fx.Node, Reader]

    @property
    def count(self) -> int:
        return sum(group.count for group in self.units)


def columns(captured: Captured, kinds: tuple[str, ...] | None, model: nn.Module) -> Columns:
    """The units of some kinds (None: all), found on the captured graph of `model` before it is rewritten.

    Raises
    ------
    PxpError
        A kind is not known, or the model has no such units.
    """
    unknown = set(kinds or ()) - set(KINDS)
    if unknown:
        raise PxpError(f"unit kinds {sorted(unknown)} are not known; choose from {', '.join(KINDS)}")
    sites = find_units(captured, kinds)
    if not sites:
        raise PxpError(f"{type(model).__name__} has no units of kind {', '.join(kinds or KINDS)} to score")
    offsets: dict[str, int] = {}
    groups: dict[str, UnitGroup] = {}
    readers, total = {}, 0
    for site in sites:
        name = site.group.name
        if name not in groups:
            groups[name], offsets[name] = site.group, total
            total += site.group.count
        else:
            slices = dict.fromkeys((*groups[name].slices, *site.group.slices))
            groups[name] = dataclasses.replace(groups[name], slices=tuple(slices))
        readers[site.node] = Reader(offsets[name], site.group.count, site.batch_dim, site.scale)
    return Columns(tuple(groups.values()), tuple(sites), readers)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """`value`, if it is one of `allowed`; else PxpError naming the option."""
    if value not in allowed:
        raise PxpError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
    return str(value)

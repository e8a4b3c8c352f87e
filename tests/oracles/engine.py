"""The engine under test, behind the questions that tests ask of it."""

from __future__ import annotations

from torch import Tensor, nn

from pxp_fast.criteria import Relevance
from pxp_fast.lrp import Program, capture


def by_unit(relevance: Relevance, table: Tensor) -> dict[str, Tensor]:
    """The columns [2, N, count] of a table, by module."""
    parts = table.split([group.count for group in relevance.units], dim=2)
    return {group.name: part for group, part in zip(relevance.units, parts, strict=True)}


def unit_sums(model: nn.Module, images: Tensor, labels: Tensor, initial: str = "one", **options) -> dict[str, Tensor]:
    """Module -> [2, N, count]: signed and absolute sums of relevance."""
    relevance = Relevance(model, images, **options)
    return by_unit(relevance, relevance.run(images, labels, initial))


def observed(model: nn.Module, images: Tensor, labels: Tensor, composite="epsilon") -> list[tuple[str, Tensor]]:
    """(operator, relevance) of every tensor that relevance passes, from the logits down to the images."""
    program = Program(capture(model, images), {}, composite, input_relevance=True)
    seen = []
    program.run(images, labels, observe=lambda node, value, carry: seen.append((node.name, value * carry)))
    return seen


def relative_l1(found: Tensor, truth: Tensor) -> float:
    """sum |found - truth| / sum |truth| (sum |found| when the truth is nothing)."""
    difference = (found.double() - truth.double()).abs().sum().item()
    size = truth.double().abs().sum().item()
    return difference / size if size else difference

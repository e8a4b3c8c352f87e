"""Result files: one for each experiment and subject, a line for each finished cell, and the statistics of a cell."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pxp_fast as pxp
from pxp_fast.files import atomic_write

FOLDER = Path(__file__).resolve().parent.parent / "results" / "experiments"


@dataclass
class Results:
    """The cells of one experiment on one subject, kept in a JSON file that is written anew after each.

    Attributes
    ----------
    head
        What must be the same for cells to belong together: experiment, subject, settings.
    cells
        By name of the method.
    about
        What made them: written beside them, and never compared.
    """

    path: Path
    head: dict[str, Any]
    cells: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, head: dict[str, Any], about: dict[str, Any] | None = None) -> Results:
        """The file's cells, or none where it is not there or was made with other settings."""
        head = json.loads(json.dumps(head))
        if path.is_file():
            record = json.loads(path.read_text())
            if {key: record.get(key) for key in head} == head:
                return cls(path, head, record["cells"], about or {})
        return cls(path, head, about=about or {})

    def cell(self, name: str, make: Callable[[], dict[str, Any]], again: bool = False) -> bool:
        """Make a cell unless the file has it, or `again`; whether it was made."""
        if name in self.cells and not again:
            return False
        self.cells[name] = make()
        self.save()
        return True

    def save(self) -> None:
        lines = [
            f" {json.dumps(key)}: {json.dumps(value)}," for key, value in {**self.head, "about": self.about}.items()
        ]
        cells = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(self.cells.items())]
        text = "\n".join(["{", *lines, ' "cells": {', ",\n".join(cells), " }", "}"]) + "\n"
        with atomic_write(self.path) as temporary:
            temporary.write_text(text)


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions and its standard error, which is None where there is one repetition alone."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.error is None else f"{self.mean:.3f} ± {self.error:.3f}"

    @property
    def sign(self) -> int | None:
        """1 or -1 where the mean is more than two standard errors from 0, else 0; None without a standard error."""
        if self.error is None:
            return None
        return 0 if abs(self.mean) <= 2 * self.error else int(math.copysign(1, self.mean))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (sample deviation over the root of the number)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error)


def curves(cell: dict[str, Any], rates: Sequence[float]) -> list[pxp.Curve]:
    """The curve of every repetition of a cell, whose ``correct`` is [repetitions][rates] and ``total`` of images."""
    return [
        pxp.Curve(tuple(rates), tuple(right / cell["total"] for right in row), tuple([0] * len(rates)))
        for row in cell["correct"]
    ]


def a_pr(cell: dict[str, Any], rates: Sequence[float]) -> list[float]:
    """PXP's A_PR of every repetition."""
    return [curve.a_pr for curve in curves(cell, rates)]


def top_pr(cell: dict[str, Any], rates: Sequence[float]) -> list[float]:
    """PXP's Top-PR of every repetition."""
    return [curve.top_pr for curve in curves(cell, rates)]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean difference of repetitions that belong together, pair by pair."""
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])

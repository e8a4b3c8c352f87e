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
from pxp_fast.errors import PxpError
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
        What made them, in the end what makes cells now; each cell says which, and it is never compared.
    """

    path: Path
    head: dict[str, Any]
    cells: dict[str, Any] = field(default_factory=dict)
    about: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: Path, head: dict[str, Any], about: dict[str, Any] | None = None, again: bool = False
    ) -> Results:
        """The file's cells, or none where it is not there.

        Raises
        ------
        PxpError
            It was made with other settings; `again` replaces it at the first finished cell.
        """
        head = json.loads(json.dumps(head))
        about = json.loads(json.dumps(about or {}))
        if not path.is_file():
            return cls(path, head, about=[about])
        record = json.loads(path.read_text())
        if different := [key for key in head if record.get(key) != head[key]]:
            if again:
                return cls(path, head, about=[about])
            key = different[0]
            raise PxpError(
                f"{path} holds results of other settings: {key} {record.get(key)} there, {head[key]} here; write into "
                "another folder with --out, or replace them all with --again"
            )
        cells = {name: {"about": 0} | cell for name, cell in record["cells"].items()}
        return cls(path, head, cells, [*makers(record), about])

    def cell(
        self, name: str, make: Callable[[], dict[str, Any]], again: bool = False, composite: str | None = None
    ) -> bool:
        """Make a cell unless the file has it, or `again`; whether it was made.

        `composite` is a digest of what the cell depends on beside its name: one of another is made anew.
        """
        if name in self.cells and not again and self.cells[name].get("composite") in (None, composite):
            return False
        self.cells[name] = make() | {"about": len(self.about) - 1}
        if composite is not None:
            self.cells[name]["composite"] = composite
        self.save()
        return True

    def save(self) -> None:
        used = [self.about[index] for index in sorted({cell["about"] for cell in self.cells.values()})]
        distinct = [about for position, about in enumerate(used) if about not in used[:position]]
        numbered = {
            name: cell | {"about": distinct.index(self.about[cell["about"]])} for name, cell in self.cells.items()
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in self.head.items()]
        made = [f"  {json.dumps(about)}" for about in distinct]
        cells = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(numbered.items())]
        parts = ["{", *lines, ' "about": [', ",\n".join(made), " ],", ' "cells": {', ",\n".join(cells), " }", "}"]
        with atomic_write(self.path) as temporary:
            temporary.write_text("\n".join(parts) + "\n")


def makers(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What made a file's cells; in files from before each cell said so, the one thing that it names."""
    about = record.get("about") or []
    return [about] if isinstance(about, dict) else about


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions and its standard error, which is None where there is one repetition alone."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.error is None else f"{self.mean:.3f} ± {self.error:.3f}"

    def side(self, threshold: float = 0.0) -> int:
        """1 or -1 where the mean is more than two standard errors above or below a threshold, else 0.

        0 also where there is no standard error.
        """
        gap = self.mean - threshold
        return 0 if self.error is None or abs(gap) <= 2 * self.error else int(math.copysign(1, gap))


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


def reference_curves(record: dict[str, Any], name: str) -> dict[str, list[Estimate]]:
    """A_PR and agreement at every number of reference images."""
    cell = record["cells"][name]
    rows = [{"correct": cell["correct"][str(n)], "total": cell["total"]} for n in record["counts"]]
    return {
        "A_PR": [estimate(a_pr(row, record["rates"])) for row in rows],
        "agreement": [estimate(cell["overlap"][str(n)]) for n in record["counts"]],
    }


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean difference of repetitions that belong together, pair by pair."""
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])


def apart(ours: dict[str, Any], theirs: dict[str, Any], rates: Sequence[float]) -> Estimate:
    """Difference of A_PR between two cells that have no repetitions in common.

    The error is that of the images that judge (binomial, which is an upper bound: rates share the images, and so do the
    cells), and of the repetitions where a cell has them.
    """
    parts = [one_run(cell, rates) for cell in (ours, theirs)]
    return Estimate(parts[0].mean - parts[1].mean, math.hypot(*(part.error for part in parts)))


def one_run(cell: dict[str, Any], rates: Sequence[float]) -> Estimate:
    """A_PR, with an error that counts the images that judge as well as repetitions."""
    found = estimate(a_pr(cell, rates))
    return Estimate(found.mean, math.hypot(binomial(found.mean, cell["total"]), found.error or 0.0))


def binomial(share: float, total: int) -> float:
    """Standard error of the share of so many images."""
    return math.sqrt(share * (1 - share) / total)

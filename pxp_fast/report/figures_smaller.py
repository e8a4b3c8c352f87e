"""The figures of the smaller network: what is left of its costs, how classes fare, how alike its explanations are."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from ..records import AgreementRecord, CostsRecord
from ..results import ClassRecord
from .figures import _ACCENT, _BAND, _INK, _MUTED, _PAPER, _SECOND, _WARN, _canvas, _svg
from .smaller import MEASURES, costs_table, points

_NAMED = 30


def costs(found: CostsRecord, salt: int, narrow: bool = False) -> Markup:
    """What is left of each cost, and half of the rounds' times as a line."""
    rows = costs_table(found)
    pairs = [found.parameters, found.flops, found.bytes]
    left = [100 * after / before if before else 100.0 for before, after in pairs]
    left += [100 / one.speed_up.median for one in found.latency]
    colours = [_ACCENT] * len(pairs) + [_SECOND] * len(found.latency)
    figure, axes = _canvas(0.62 + 0.42 * len(rows), narrow)
    places = range(len(rows))
    axes.barh(places, [100] * len(rows), height=0.62, color=_BAND, linewidth=0)
    axes.barh(places, left, height=0.62, color=colours, linewidth=0)
    reach = [0.0] * len(pairs) + [100 / one.speed_up.low for one in found.latency]
    for place, one in zip(list(places)[len(pairs) :], found.latency, strict=True):
        axes.plot([100 / one.speed_up.high, 100 / one.speed_up.low], [place] * 2, color=_INK, linewidth=1.4)
    for place, (row, share, far) in enumerate(zip(rows, left, reach, strict=True)):
        axes.annotate(
            row.left, (max(share, far), place), (5, 0), textcoords="offset points", va="center", fontsize=9, color=_INK
        )
    axes.axvline(100, color=_MUTED, linewidth=0.9)
    axes.axvline(left[1], color=_MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, max(112, max(*left, *reach) + (25 if narrow else 9))), xlabel="of the whole network's (%)")
    axes.grid(visible=False, axis="y")
    return _svg(figure, f"costs-{salt}", narrow)


def classes(records: list[ClassRecord], salt: int, narrow: bool = False) -> Markup:
    """The change of every class's accuracy, the largest loss first."""
    changes = [100 * (r.after - r.before) / r.total for r in records]
    named = len(records) <= _NAMED
    figure, axes = _canvas(2.9 if named else 2.4, narrow)
    colours = [_WARN if value < 0 else _ACCENT for value in changes]
    axes.bar(range(len(records)), changes, width=0.72 if named else 1, color=colours, linewidth=0)
    axes.axhline(0, color=_MUTED, linewidth=0.9)
    if named:
        for place, value in enumerate(changes):
            axes.annotate(
                points(value / 100), (place, value), (0, 3 if value >= 0 else -3), textcoords="offset points",
                ha="center", va="bottom" if value >= 0 else "top", fontsize=7 if narrow else 8, color=_INK,
            )  # fmt: skip
        names = [r.name if len(r.name) <= 18 else f"{r.name[:17]}…" for r in records]
        wide = sum(map(len, names)) > (24 if narrow else 80)
        axes.set_xticks(range(len(records)), names, rotation=90 if wide else 0, fontsize=8)
        axes.margins(y=0.15)
    else:
        axes.set_xlabel(f"{len(records):,} classes, the largest loss first")
    axes.set(xlim=(-0.7, len(records) - 0.3), ylabel="change (points)")
    if not any(changes):
        axes.set_ylim(-1, 1)
    axes.grid(visible=False, axis="x")
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, f"classes-{salt}", narrow)


def agreement(found: tuple[AgreementRecord, ...], salt: int, narrow: bool = False) -> Markup:
    """Each image as a dot, the mean of all and where it lies with 95 % confidence."""
    figure, axes = _canvas(0.75 + 0.5 * len(found), narrow)
    for place, record in enumerate(found):
        count = len(record.values)
        # Spread out by a fixed pattern, so that equal values can be told apart.
        offsets = 0.26 * (2 * (np.arange(count) * 0.618034 % 1) - 1)
        axes.plot(record.values, place + offsets, "o", color=_ACCENT, alpha=0.4, markersize=4.5, markeredgewidth=0)
        axes.plot(record.interval, [place, place], color=_INK, linewidth=2)
        axes.plot(record.mean, place, "o", markersize=8, markerfacecolor=_PAPER, markeredgecolor=_INK)
    lowest = min(min(record.values) for record in found)
    axes.set_yticks(range(len(found)), [MEASURES[record.measure][0] for record in found])
    axes.invert_yaxis()
    axes.set(xlim=(min(-0.02, lowest - 0.05), 1.02), xlabel="agreement (1: the same)")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=_BAND, linewidth=0.7)
    return _svg(figure, f"agreement-{salt}", narrow)

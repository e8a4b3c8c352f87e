"""The plots of docs/pxp.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import figures

from . import results
from .methods import BY_NAME, SUBJECTS

SHOWN = ("tuned", "tuned_bounded", "epsilon", "epsilon_bounded", "taylor", "activation", "magnitude", "random")
COLOURS = dict(
    zip(SHOWN, ("#0b6e69", "#074543", "#2f9e8f", "#7fc8bd", "#c77f1b", "#b4436c", "#5461a8", "#9aa5b1"), strict=True)
)
Records = dict[str, dict[str, Any]]


def draw_curves(records: Records, experiment: str, path: Path) -> None:
    """Mean accuracy against the fraction of units removed, a panel for each subject."""
    subjects = [subject for subject in SUBJECTS if f"{experiment}_{subject.name}" in records]
    pyplot = figures.style()
    figure, axes = pyplot.subplots(
        1, len(subjects), figsize=(2.7 * len(subjects) + 1, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, subject in zip(axes[0], subjects, strict=True):
        record = records[f"{experiment}_{subject.name}"]
        for name in (name for name in SHOWN if name in record["cells"]):
            cell = record["cells"][name]
            columns = list(zip(*cell["correct"], strict=True))
            values = [results.estimate([100 * right / cell["total"] for right in column]) for column in columns]
            rates = [100 * rate for rate in record["rates"]]
            axis.plot(rates, [v.mean for v in values], color=COLOURS[name], lw=1.6, label=BY_NAME[name].title)
            low, high = zip(*((v.mean - (v.error or 0), v.mean + (v.error or 0)) for v in values), strict=True)
            axis.fill_between(rates, low, high, color=COLOURS[name], alpha=0.2, lw=0)
        axis.set(title=subject.title, xlabel="units removed (%)", xlim=(0, 95), ylim=(0, 100))
        _plain(axis)
    axes[0, 0].set_ylabel("accuracy (%)")
    _finish(pyplot, figure, axes[0], path)


def draw_references(records: Records, path: Path) -> None:
    """A_PR above, agreement of two draws below, against reference images per class."""
    subjects = [subject for subject in SUBJECTS if f"references_{subject.name}" in records]
    pyplot = figures.style()
    figure, axes = pyplot.subplots(
        2,
        len(subjects),
        figsize=(2.7 * len(subjects) + 1, 4.4),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, subject in zip(axes.T, subjects, strict=True):
        record = records[f"references_{subject.name}"]
        for name in (name for name in SHOWN if name in record["cells"]):
            for axis, values in zip(column, results.reference_curves(record, name).values(), strict=True):
                means, errors = [v.mean for v in values], [v.error or 0 for v in values]
                label = BY_NAME[name].title
                axis.errorbar(record["counts"], means, errors, color=COLOURS[name], lw=1.6, capsize=2, label=label)
        column[0].set_title(subject.title)
        column[1].set(xlabel="reference images per class", xscale="log", ylim=(0, 1))
        column[1].set_xticks(record["counts"], map(str, record["counts"]))
        column[1].minorticks_off()
        for axis in column:
            _plain(axis)
    axes[0, 0].set_ylabel("A_PR")
    axes[1, 0].set_ylabel("agreement")
    _finish(pyplot, figure, axes[0], path)


def _plain(axis: Any) -> None:
    axis.grid(color="#d9dee3", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _finish(pyplot: Any, figure: Any, axes: Any, path: Path) -> None:
    """One legend for all panels, below them; the file."""
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

"""The figures, as inline SVG whose colours and fonts are the page's.

Every colour is drawn as a placeholder and replaced by a variable of the page's style sheet, so one figure serves the
light and the dark page.
"""

from __future__ import annotations

import io
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..records import LayerRecord
from ..results import Results

if TYPE_CHECKING:
    from ..stability import Stability

_INK, _MUTED, _LINE, _ACCENT, _WARN, _BAND, _PAPER, _SECOND, _THIRD = (f"#0a0b{n:02x}" for n in range(9))
_VARIABLES = {
    _INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _WARN: "warn", _BAND: "band", _PAPER: "paper",
    _SECOND: "second", _THIRD: "third",
}  # fmt: skip
_KIND_COLOURS = {"filter": _ACCENT, "neuron": _THIRD, "head": _SECOND}
_LABELLED = 40
_PALE = 0.4


def curve(results: Results, salt: int, narrow: bool = False) -> Markup:
    """Accuracy against the share of units removed: the plan's order, the opposite order, and the random band."""
    figure, axes = _canvas(3.5, narrow)
    chance = [found for found in results.curves if found.order == "random"]
    if chance:
        rates = [100 * rate for rate in chance[0].rates]
        columns = list(zip(*(found.accuracies for found in chance), strict=True))
        label, line = f"random order, {len(chance)} seeds (range and mean)", None
        if len(chance) == 1:
            label, line = None, "random order"
        axes.fill_between(
            rates,
            [100 * min(c) for c in columns],
            [100 * max(c) for c in columns],
            color=_BAND,
            linewidth=0,
            label=label,
        )
        axes.plot(rates, [100 * sum(c) / len(c) for c in columns], color=_MUTED, linewidth=1.2, label=line)
    styles = (
        ("most", "most relevant first", _WARN, 1.4, (0, (4, 2))),
        ("least", "least relevant first", _ACCENT, 2.4, "-"),
    )
    for order, label, colour, width, dashes in styles:
        found = results.curve(order)
        if found:
            xs, ys = ([100 * v for v in values] for values in (found.rates, found.accuracies))
            axes.plot(xs, ys, color=colour, linewidth=width, linestyle=dashes, label=label)
            if order == "least":
                axes.plot(xs, ys, "o", color=colour, markersize=3.5)
    axes.axhline(95 * results.before.accuracy, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(
        "95 % of the unpruned accuracy", (100, 95 * results.before.accuracy), (0, 3), textcoords="offset points",
        ha="right", va="bottom", fontsize=8, color=_MUTED,
    )  # fmt: skip
    if results.config.get("order", "least") == "least":
        point = (100 * results.rate, 100 * results.after.accuracy)
        axes.plot(
            *point,
            "o",
            markersize=9,
            markerfacecolor=_PAPER,
            markeredgecolor=_ACCENT,
            markeredgewidth=2,
            label="this plan",
        )
    axes.set(xlim=(-1.5, 101), ylim=(0, 104), xlabel="units removed (%)", ylabel="accuracy (%)")
    axes.set_xticks(range(0, 101, 20 if narrow else 10))
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: ("least", "this", "rando", "most").index(labels[i].split()[0][:5]))
    legend = axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=9, loc="upper center",
        bbox_to_anchor=(0.5, 1.36 if narrow else 1.16), ncols=1 if narrow else 4, handlelength=1.8, columnspacing=1.6,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure, f"curve-{salt}", narrow)


def layers(results: Results, salt: int) -> Markup:
    """The share of each layer's units that the plan removes, in the order of the network.

    Where the network is slimmed, what is cut out is solid and what stays as zeros pale.
    """
    figure, axes = _canvas(2.9)
    found = [layer for layer in results.layers if layer.count]
    for kind in dict.fromkeys(layer.kind for layer in found):
        positions = [i for i, layer in enumerate(found) if layer.kind == kind]
        shares = [100 * found[i].removed / found[i].count for i in positions]
        axes.bar(positions, [100] * len(positions), width=0.72, color=_BAND, linewidth=0)
        solid = [100 * _solid(found[i]) / found[i].count for i in positions]
        colour = _KIND_COLOURS.get(kind, _MUTED)
        axes.bar(positions, shares, width=0.72, color=colour, alpha=_PALE, linewidth=0)
        axes.bar(positions, solid, width=0.72, color=colour, linewidth=0, label=f"{kind}s")
    axes.axhline(100 * results.removed / max(results.units, 1), color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
    step = max(1, -(-len(found) // _LABELLED))
    ticks = range(0, len(found), step)
    axes.set_xticks(list(ticks), [found[i].name for i in ticks], rotation=90 if len(found) > 8 else 0, fontsize=7.5)
    axes.set(xlim=(-0.7, max(len(found), 1) - 0.3), ylim=(0, 100), ylabel="removed (%)")
    axes.grid(visible=False, axis="x")
    if len({layer.kind for layer in found}) > 1:
        legend = axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 1.16), ncols=3)
        for text in legend.get_texts():
            text.set_color(_INK)
    return _svg(figure, f"layers-{salt}")


def _solid(layer: LayerRecord) -> int:
    return layer.removed if layer.cut is None else layer.cut


def stability(found: Stability) -> Markup:
    """How well reference sets agree with all the images, against their images per class: means, and 95 % intervals."""
    figure, axes = _canvas(3.5)
    lines = (("overlap of the units removed", found.overlap, _ACCENT), ("Kendall's tau", found.tau, _SECOND))
    for label, points, colour in lines:
        mean = [100 * point.mean for point in points]
        if points[0].low is not None:
            low, high = ([100 * getattr(point, name) for point in points] for name in ("low", "high"))
            axes.fill_between(found.sizes, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(found.sizes, mean, "-o", color=colour, linewidth=2, markersize=3.5, label=label)
    axes.axhline(100 * found.rate, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(
        "overlap by chance", (found.sizes[-1], 100 * found.rate), (0, 3), textcoords="offset points", ha="right",
        va="bottom", fontsize=8, color=_MUTED,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(found.sizes, [str(size) for size in found.sizes])
    axes.minorticks_off()
    axes.set(xlabel="images per class", ylabel=f"agreement with all {found.full} images (%)")
    axes.set_ylim(top=104)
    legend = axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure, "stability")


def standalone(drawing: Markup) -> str:
    """A figure as a file of its own, with the page's colours, light and dark."""
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    colours = style[: style.index("* {")]
    drawing = drawing.replace('aria-hidden="true" ', "", 1)
    end = drawing.index(">") + 1
    ground = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawing[:end]}<style>{colours}</style>{ground}{drawing[end:]}'


def _canvas(height: float, narrow: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 if narrow else 9.2, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=_MUTED, fontsize=9.5)
    axes.yaxis.label.set(color=_MUTED, fontsize=9.5)
    return figure, axes


def _svg(figure: Any, salt: str, narrow: bool = False) -> Markup:
    """The drawing as an SVG element for inlining; its ids are unique to `salt` and the same at every run."""
    import matplotlib as mpl

    salt = f"{salt}-narrow" if narrow else salt
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and two figures would repeat them
    text = re.sub(r"(font: [0-9.]+px )[^;\"]*", r"\1var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text.replace("<svg ", '<svg aria-hidden="true" ', 1))

"""The page of a search: how it went, which parameters matter, and the best against epsilon on images held out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from . import require_extra, save
from .words import Tile, count, percent

if TYPE_CHECKING:
    from ..tuning.records import Contender, TrialRecord, Tuning

_PARAMETERS_SHOWN = 12


def render(tuning: Tuning, command: str) -> str:
    """The page, as HTML without script or network; `command` is what asks for the search again."""
    require_extra()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "count": count}
    read = {name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
            for name in ("tuning.html", "style.css")}  # fmt: skip
    return environment.from_string(read["tuning.html"]).render(
        t=tuning,
        style=read["style.css"],
        command=command,
        title=title(tuning.objective),
        headline=headline(tuning),
        notes=list(notes(tuning)),
        tiles=tiles(tuning),
        settings=settings(tuning),
        history=_history(tuning),
        importance=_importance(tuning) if tuning.importance else None,
        no_importance=no_importance(tuning),
        curves=_curves(tuning),
        value=value,
        rules=rules,
    )


def write(folder: Path, command: str) -> Path:
    """Make the page of a folder's ``tune.json``, which may know more by now than the search that asks for it."""
    from ..tuning.records import Tuning
    from ..tuning.storage import conclusion

    page = folder / "tune.html"
    with conclusion(folder):
        save(render(Tuning.load(folder / "tune.json"), command), page)
    return page


def title(objective: str) -> str:
    """An objective's name as it is read."""
    from ..tuning.objective import Objective

    return Objective.parse(objective).title


def summary(tuning: Tuning) -> list[str]:
    """The outcome in a few lines."""
    return [headline(tuning), *notes(tuning), rules(tuning.best.composite, tuning.best.magnitude)]


def headline(tuning: Tuning) -> str:
    best, epsilon = (contender.held_out or contender.tuning for contender in (tuning.best, tuning.epsilon))
    where = "held-out" if tuning.best.held_out else "tuning"
    if tuning.best == tuning.epsilon:
        return f"epsilon stays the best of {len(tuning.trials)} trials: {title(tuning.objective)} {best.value:.4f}"
    return (
        f"{title(tuning.objective)} {best.value:.4f} on {where} images, epsilon {epsilon.value:.4f} "
        f"({best.value - epsilon.value:+.4f})"
    )


def notes(tuning: Tuning) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    best, epsilon = tuning.best, tuning.epsilon
    if best.held_out is None:
        yield "No images were held out: the best was chosen by the very images that it is judged on here."
    elif best != epsilon and best.held_out.value < epsilon.held_out.value:
        yield (
            "On images held out the composite found does worse than epsilon: the search followed chance in the "
            "tuning images. Take epsilon, or tune on more images."
        )
    if tuning.running:
        yield f"Other processes are still at {tuning.running} trials; the last of them to end makes this page again."
    if tuning.missing_presets:
        yield f"Not in the search space, so not tried: {', '.join(tuning.missing_presets)}."
    if failed := sum(trial.state == "failed" for trial in tuning.trials):
        yield f"{failed} trials failed; the table says why."


def no_importance(tuning: Tuning) -> str:
    """Why the page does not say which parameters matter."""
    from ..tuning.records import LEAST_FOR_IMPORTANCE as LEAST

    if tuning.importance_trials < LEAST:
        return f"{tuning.importance_trials} trials are too few to tell which parameters matter; it takes {LEAST}."
    return f"All {tuning.importance_trials} trials did alike, so no parameter can be told to matter."


def tiles(tuning: Tuning) -> list[Tile]:
    name, best, epsilon = title(tuning.objective), tuning.best, tuning.epsilon
    shown = []
    if best.held_out and epsilon.held_out:
        images = f"{count(tuning.held_out_images or 0)} images held out"
        shown += [Tile(f"{name}, best", f"{best.held_out.value:.4f}", images),
                  Tile(f"{name}, epsilon", f"{epsilon.held_out.value:.4f}", images)]  # fmt: skip
    images = f"{count(tuning.tuning_images)} images that chose"
    shown.append(Tile("The same, tuning", f"{best.tuning.value:.4f}", f"epsilon {epsilon.tuning.value:.4f}; {images}"))
    pruned = sum(trial.state == "pruned" for trial in tuning.trials)
    shown.append(Tile("Trials", count(len(tuning.trials)), f"{pruned} given up early"))
    return shown


def settings(tuning: Tuning) -> list[tuple[str, str, str]]:
    """Each of a composite's settings: its name, that of the best, that of epsilon."""
    found = [_settings(contender) for contender in (tuning.best, tuning.epsilon)]
    return [(name, *(one.get(name, "") for one in found)) for name in dict.fromkeys([*found[0], *found[1]])]


def _settings(contender: Contender) -> dict[str, str]:
    described = {name: given for name, given in contender.composite.items() if name not in ("name", "layers")}
    shown = {name.replace("_", " "): _rule(given) for name, given in described.items()}
    for pattern, given in dict(contender.composite.get("layers") or {}).items():
        shown[f"layers {pattern}"] = _rule(given)
    return shown | {"units ranked by": "absolute relevance" if contender.magnitude else "signed relevance"}


def rules(composite: dict[str, Any], magnitude: bool) -> str:
    """A composite in one line."""
    parts = [
        f"{name.replace('_', ' ')} {_rule(given)}" for name, given in composite.items() if name != "name" and given
    ]
    return ", ".join(parts) + ("" if magnitude else ", signed relevance")


def _rule(given: Any) -> str:
    if isinstance(given, dict):
        values = dict(given)
        name = str(values.pop("rule", ""))
        return " ".join([name, *(f"({key} {number:g})" for key, number in values.items() if number != name)]).strip()
    return f"{given:g}" if isinstance(given, float) else str(given)


def value(trial: TrialRecord) -> str:
    """A trial's value as it is listed."""
    return "" if trial.value is None else f"{trial.value:.4f}"


def _history(tuning: Tuning) -> Markup:
    """The value of each trial, and the best until then."""
    from .figures import _ACCENT, _INK, _MUTED, _PAPER, _canvas, _svg

    figure, axes = _canvas(3.3)
    complete = [trial for trial in tuning.trials if trial.state == "complete"]
    pruned = [trial for trial in tuning.trials if trial.state == "pruned" and trial.value is not None]
    named = [trial for trial in complete if trial.preset]
    axes.plot([t.number for t in pruned], [t.value for t in pruned], "x", color=_MUTED, markersize=5, label="given up")
    axes.plot([t.number for t in complete], [t.value for t in complete], "o", color=_ACCENT, markersize=4.5,
              label="judged to the end")  # fmt: skip
    axes.plot([t.number for t in named], [t.value for t in named], "o", markersize=8, markerfacecolor=_PAPER,
              markeredgecolor=_ACCENT, markeredgewidth=1.8, label="named composite")  # fmt: skip
    best = [max(t.value for t in complete[: position + 1]) for position in range(len(complete))]
    axes.step([t.number for t in complete], best, color=_ACCENT, linewidth=1.6, where="post", label="best so far")
    axes.axhline(tuning.epsilon.tuning.value, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="epsilon")
    axes.set(xlabel="trial", ylabel=title(tuning.objective))
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend = axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=5)
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure, "history")


def _importance(tuning: Tuning) -> Markup:
    """Each parameter's share in the variation of the objective."""
    from .figures import _ACCENT, _INK, _canvas, _svg

    shown = list(tuning.importance.items())[:_PARAMETERS_SHOWN][::-1]
    figure, axes = _canvas(0.7 + 0.32 * len(shown))
    bars = axes.barh(range(len(shown)), [100 * share for _, share in shown], height=0.62, color=_ACCENT, linewidth=0)
    axes.bar_label(bars, [percent(share, 0) for _, share in shown], padding=4, fontsize=9, color=_INK)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ").replace(".", ": ") for name, _ in shown])
    axes.set(xlim=(0, 108), xlabel="share of the variation (%)")
    axes.grid(visible=False, axis="y")
    return _svg(figure, "importance")


def _curves(tuning: Tuning) -> Markup:
    """Accuracy against the share of units removed: the best and epsilon, on images held out if there are any."""
    from .figures import _ACCENT, _INK, _WARN, _canvas, _svg

    figure, axes = _canvas(3.5)
    styles = (("epsilon", tuning.epsilon, _WARN, (0, (4, 2)), 1.6), ("best", tuning.best, _ACCENT, "-", 2.4))
    for label, contender, colour, dashes, width in styles:
        judged = contender.held_out or contender.tuning
        xs, ys = ([100 * number for number in numbers] for numbers in (judged.rates, judged.accuracies))
        axes.plot(xs, ys, color=colour, linewidth=width, linestyle=dashes, marker="o", markersize=3.5, label=label)
    axes.set(xlim=(-1.5, 101), ylim=(0, 104), xlabel="units removed (%)", ylabel="accuracy (%)")
    legend = axes.legend(frameon=False, fontsize=9, loc="upper right")
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure, "best-and-epsilon")

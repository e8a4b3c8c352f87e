"""The sentences and numbers of the page."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from ..results import ClassRecord, Results


class Tile(NamedTuple):
    """A number with its name and what to compare it with."""

    name: str
    value: str
    remark: str


def percent(fraction: float, digits: int = 1) -> str:
    """0.123 -> "12.3 %", with a thin space; whole percents lose the zero."""
    text = f"{100 * fraction:.{digits}f}"
    return f"{text.removesuffix('.0')}\u202f%"


def count(number: int) -> str:
    """12345 -> "12,345"."""
    return f"{number:,}"


def unit_names(results: Results) -> str:
    """The kinds of unit, in words: "filters and neurons"."""
    kinds = list(dict.fromkeys(f"{layer.kind}s" for layer in results.layers))
    return " and ".join([", ".join(kinds[:-1]), kinds[-1]]) if len(kinds) > 1 else (kinds or ["units"])[0]


def headline(results: Results) -> str:
    return (
        f"{percent(results.removed / max(results.units, 1))} of {unit_names(results)} removed, "
        f"accuracy {percent(results.before.accuracy)} \u2192 {percent(results.after.accuracy)}"
    )


def criterion(results: Results) -> str:
    """What units were scored by, in words: "relevance", "taylor"."""
    name = results.config.get("criterion", "lrp")
    return "relevance" if name == "lrp" else name


def measured(results: Results) -> str:
    """What the scores and the accuracy were measured on, as a sentence."""
    name, judged = criterion(results), count(results.evaluation.read)
    if name != "relevance" and not results.reference.read:
        return f"Units were scored by {name}, which needs no images, and accuracy was measured on {judged} images."
    others = "others" if not results.shared_images else f"images, {count(results.shared_images)} of them the same"
    scored = f"{count(results.reference.read)} images and accuracy"
    if name == "relevance":
        return f"Relevance was measured on {scored} on {judged} {others}."
    return f"Units were scored by {name} on {scored} was measured on {judged} {others}."


def summary(results: Results) -> str:
    order = {"least": "least relevant first", "most": "most relevant first", "random": "in random order"}
    task = f", for {len(results.task.classes)} classes alone" if results.task is not None else ""
    slimmed = results.slimmed is not None and results.slimmed.problem is None
    text = (
        f"{count(results.removed)} of {count(results.units)} {unit_names(results)} were "
        f"{'removed' if slimmed else 'set to zero'}, "
        f"{order[results.config.get('order', 'least')]}, without any retraining{task}. {measured(results)}"
    )
    least = results.curve("least")
    tops = [curve.top_pr for curve in results.curves if curve.order == "random"]
    if not results.before.correct:
        text += " The accuracy of the unpruned network is 0, so there is none to keep."
    elif least and tops:
        text += (
            f" Up to {percent(least.top_pr, 0)} can go while at least 95\u202f% of the unpruned accuracy stays; "
            f"in random order {percent(statistics.median_low(tops), 0)} (median of {len(tops)})."
        )
    return text


def tiles(results: Results) -> list[Tile]:
    low, high = (percent(bound) for bound in results.after.interval)
    before_low, before_high = (percent(bound) for bound in results.before.interval)
    shown = [
        Tile("Accuracy before", percent(results.before.accuracy), f"95\u202f% interval {before_low} to {before_high}"),
        Tile("Accuracy after", percent(results.after.accuracy), f"95\u202f% interval {low} to {high}"),
        Tile(
            "Units removed",
            percent(results.removed / max(results.units, 1)),
            f"{count(results.removed)} of {count(results.units)}",
        ),
    ]
    least = results.curve("least")
    chance = [curve for curve in results.curves if curve.order == "random"]
    if least:
        against = (
            f"random order {statistics.mean(c.a_pr for c in chance):.3f}" if chance else "mean accuracy over all rates"
        )
        shown.append(Tile("A_PR", f"{least.a_pr:.3f}", against))
        against = (
            f"random order {percent(statistics.median_low(c.top_pr for c in chance), 0)}"
            if chance
            else "keeps 95\u202f%"
        )
        shown.append(Tile("Top-PR", percent(least.top_pr, 0), against))
    return shown


def class_changes(results: Results) -> list[ClassRecord]:
    """All classes that were judged, the largest loss first."""
    return sorted((r for r in results.classes if r.total), key=lambda r: ((r.after - r.before) / r.total, r.label))


def class_changes_alt(results: Results) -> str:
    found = class_changes(results)
    if not found:
        return "No classes."
    worse, better = sum(r.after < r.before for r in found), sum(r.after > r.before for r in found)
    return (
        f"Of {count(len(found))} classes {count(worse)} lose accuracy, {count(better)} gain, "
        f"{count(len(found) - worse - better)} stay as they are."
    )


def curve_table(results: Results) -> list[tuple[float, list[str]]]:
    """A row per rate: accuracy in each order, random as its range."""
    chance = [curve for curve in results.curves if curve.order == "random"]
    rows = []
    least, most = results.curve("least"), results.curve("most")
    reference = least or most or (chance[0] if chance else None)
    for position, rate in enumerate(reference.rates if reference else ()):
        cells = [percent(curve.accuracies[position]) if curve else "" for curve in (least, most)]
        values = [curve.accuracies[position] for curve in chance]
        cells.append(f"{percent(min(values))} to {percent(max(values))}" if values else "")
        rows.append((rate, cells))
    return rows


def curve_alt(results: Results) -> str:
    least, most = results.curve("least"), results.curve("most")
    parts = []
    for name, curve in (("least relevant first", least), ("most relevant first", most)):
        if curve:
            shown = ", ".join(
                f"{percent(a, 0)} at {percent(r, 0)}"
                for r, a in list(zip(curve.rates, curve.accuracies, strict=True))[::4]
            )
            parts.append(f"{name}: {shown}")
    seeds = sum(curve.order == "random" for curve in results.curves)
    if seeds:
        parts.append(f"compared with {seeds} random orders")
    return "Accuracy against the share of units removed. " + "; ".join(parts) + "."


def layers_alt(results: Results) -> str:
    full = [layer for layer in results.layers if layer.count]
    if not full:
        return "No units."
    most = max(full, key=lambda layer: layer.removed / layer.count)
    least = min(full, key=lambda layer: layer.removed / layer.count)
    return (
        f"Share of units removed in each of {len(full)} layers, from {percent(least.removed / least.count, 0)} "
        f"({least.name}) to {percent(most.removed / most.count, 0)} ({most.name})."
    )

"""What the page says of the smaller network: its costs, its speed, its accuracy beside the whole one's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..records import AgreementRecord, CostsRecord, LatencyRecord, PairedRecord, SlimmedRecord, WorkRecord
from ..results import Results
from .words import Tile, count, percent

MEASURES = {
    "cosine": ("Cosine", "between the maps, pixel by pixel"),
    "overlap": ("Overlap", "of the tenth of the pixels that speak most for the class; 0.1 by chance"),
    "rank": ("Rank correlation", "Spearman's, of all pixels"),
}
_LIKE_PROMISED = 0.15
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class CostRow(NamedTuple):
    """A cost before and after, and what of it is left; of times, the quartiles as well."""

    name: str
    before: str
    after: str
    left: str
    quartiles: tuple[str, ...] = ()


def number(value: float) -> str:
    """12345678 -> "12.3 M"; below a million all digits."""
    for size_, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size_:
            return f"{_digits(value / size_)}\u202f{name}"
    return count(round(value))


def size(bytes_: int) -> str:
    """12345678 -> "12.3 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_ >= unit:
            return f"{_digits(bytes_ / unit)}\u202f{name}"
    return f"{bytes_} bytes"


def duration(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    if seconds >= 1:
        return f"{_digits(seconds)}\u202fs"
    return f"{_digits(1e3 * seconds)}\u202fms" if seconds >= 1e-3 else f"{_digits(1e6 * seconds)}\u202fµs"


def points(difference: float) -> str:
    """-0.0123 -> "−1.2", in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}".replace("-", "\u2212")
    return "0" if text[1:] == "0.0" else text.removesuffix(".0")


def images(batch: int) -> str:
    return "1 image" if batch == 1 else f"{batch} images"


def change(before: float, after: float) -> str:
    """What is left, as a share: "62 %"."""
    return percent(after / before) if before else ""


def costs_table(costs: CostsRecord) -> list[CostRow]:
    """A row per cost."""
    rows = [
        CostRow(name, shown(before), shown(after), change(before, after))
        for name, shown, (before, after) in (
            ("Parameters", count, costs.parameters),
            ("FLOPs per image", number, costs.flops),
            ("Size on disk", size, costs.bytes),
        )
    ]
    for found in costs.latency:
        sides = [duration(side.median) for side in (found.before, found.after)]
        quartiles = tuple(_between(duration(s.low), duration(s.high)) for s in (found.before, found.after))
        rows.append(CostRow(f"Time, {images(found.batch)}", *sides, percent(1 / found.speed_up.median), quartiles))
    return rows


def speed(found: LatencyRecord, promised: float) -> str:
    """How much faster a batch is, beside what FLOPs promise, as a sentence."""
    ratio, where = found.speed_up, f"With {images(found.batch)} at a time"
    measured = (
        f"{ratio.median:.2f} times as fast (half of the rounds between {ratio.low:.2f} and {ratio.high:.2f}, "
        f"quicker in {found.faster} of {found.rounds})"
    )
    if ratio.low <= 1:
        slower = "slower" if ratio.high < 1 else "not measurably faster"
        if promised < 1.005:
            return f"{where} the network is {slower} here: {measured}, as its FLOPs promise nothing."
        return f"{where} the network is {slower} here, though its FLOPs promise {promised:.2f} times: {measured}."
    beside = "less than" if ratio.median < promised else "more than"
    if abs(ratio.median / promised - 1) <= _LIKE_PROMISED:
        beside = "about what"
    promise = f"its FLOPs promise ({promised:.2f} times)"
    return f"{where} the network is {measured}, {beside} {promise}."


def speeds(costs: CostsRecord) -> list[str]:
    """A sentence per batch size, with another on why where it falls short of what FLOPs promise."""
    lines = []
    for found in costs.latency:
        line = speed(found, costs.promised)
        if found.speed_up.median < (1 - _LIKE_PROMISED) * costs.promised:
            line += f" {why(found.work)}"
        lines.append(line)
    return lines


def why(work: WorkRecord) -> str:
    """Where the time goes that FLOPs do not tell of."""
    before, after = work.counted
    rest = percent(work.other[0] / (before + work.other[0]), 0)
    return (
        f"The operators that FLOPs count (convolutions, products) went from {duration(before)} to {duration(after)}, "
        f"{before / after:.2f} times as fast; the others, {rest} of the time before, from {duration(work.other[0])} to "
        f"{duration(work.other[1])}."
    )


def how_measured(costs: CostsRecord) -> str:
    rounds = sorted({found.rounds for found in costs.latency})
    taken = " and ".join(map(str, rounds)) or "no"
    threads = f", {costs.threads} thread{'s' if costs.threads != 1 else ''}" if costs.device == "cpu" else ""
    return (
        f"Times are medians of {taken} rounds, in which both networks took turns, with quartiles below them; what is "
        f"left is the median over the rounds. On {costs.device}{threads}, {costs.precision}. FLOPs are counted as "
        "torch.utils.flop_counter does, and operators timed one by one. Size on disk is that of a safetensors file."
    )


def slimmed(found: SlimmedRecord) -> str:
    """What was done to the network, as sentences."""
    if found.problem is not None:
        return f"The network could not be made smaller, so everything here is of the masked one. {found.problem}"
    if not found.cut and not found.zeros:
        return "The plan removes nothing."
    text = f"{count(found.cut)} units were cut out of the network"
    if found.zeros:
        text += (
            f"; {count(found.zeros)} stay as zeros, because they cannot be taken out without others that the plan keeps"
        )
    beside = (
        f"differ from the masked network's by {_small(found.difference)} of the largest"
        if found.difference
        else "are exactly the masked network's"
    )
    text += f". On {images(found.compared)} the logits {beside}."
    if found.masked is not None:
        text += f" The masked network gets {count(found.masked.correct)} of {count(found.masked.total)} images right."
    return text


def compared(found: PairedRecord) -> str:
    """How accuracy changed, as sentences."""
    total = found.both + found.lost + found.gained + found.neither
    low, high = found.interval
    text = (
        f"Of {count(total)} images, {count(found.lost)} are right before and wrong after, {count(found.gained)} the "
        f"other way round: accuracy changes by {points(found.difference)} percentage points (95\u202f% interval "
        f"{points(low)} to {points(high)}, Newcombe's for paired images)."
    )
    if not found.lost + found.gained:
        return text
    verdict = "is more than chance" if found.p_value < 0.05 else "may be chance"
    return f"{text} That {verdict} (McNemar's exact test, p {_probability(found.p_value)})."


def agreement_table(found: tuple[AgreementRecord, ...]) -> list[tuple[str, str, str, str]]:
    """A row per measure: its name, its mean, the mean's interval, what it is."""
    return [
        (
            MEASURES[record.measure][0],
            f"{record.mean:.3f}",
            f"{record.interval[0]:.3f} to {record.interval[1]:.3f}",
            MEASURES[record.measure][1],
        )
        for record in found
    ]


def agreement_words(found: tuple[AgreementRecord, ...]) -> str:
    shown = "; ".join(f"{name} {mean} ({interval})" for name, mean, interval, _ in agreement_table(found))
    return f"Mean agreement of the heat maps of {len(found[0].values)} images before and after: {shown}."


def costs_words(costs: CostsRecord) -> str:
    return "What is left: " + ", ".join(f"{row.name} {row.left}" for row in costs_table(costs)) + "."


def tiles(results: Results) -> list[Tile]:
    costs = results.costs
    if costs is None:
        return []
    shown = [
        Tile(
            "Parameters", number(costs.parameters[1]), f"{change(*costs.parameters)} of {number(costs.parameters[0])}"
        ),
        Tile("FLOPs per image", number(costs.flops[1]), f"{change(*costs.flops)} of {number(costs.flops[0])}"),
    ]
    if costs.latency:
        found = costs.latency[-1]
        shown.append(
            Tile(
                f"Speed, {images(found.batch)}",
                f"{found.speed_up.median:.2f}×",
                f"FLOPs promise {costs.promised:.2f}×",
            )
        )
    return shown


def in_short(found: SlimmedRecord, costs: CostsRecord | None) -> str:
    """One line for the terminal."""
    if costs is None:
        return f"the network could not be made smaller, and goes on with masks: {found.problem}"
    parts = [
        f"{count(found.cut)} units cut out, {count(found.zeros)} stay as zeros",
        f"parameters {number(costs.parameters[0])} \u2192 {number(costs.parameters[1])}",
        f"FLOPs {number(costs.flops[0])} \u2192 {number(costs.flops[1])}",
        f"file {size(costs.bytes[0])} \u2192 {size(costs.bytes[1])}",
        *_in_short(costs),
    ]
    return "; ".join(parts)


def _in_short(costs: CostsRecord) -> Iterator[str]:
    for found in costs.latency:
        verdict = "" if found.speed_up.low > 1 else ", not measurably faster here"
        yield (
            f"{images(found.batch)} in {duration(found.before.median)} \u2192 {duration(found.after.median)} "
            f"({found.speed_up.median:.2f} times as fast, FLOPs promise {costs.promised:.2f}{verdict})"
        )


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.floor(math.log10(max(value, 1e-9)))))}f}"


def _between(low: str, high: str) -> str:
    """ "3.05 ms", "4.07 ms" -> "3.05 to 4.07 ms"."""
    number_, unit = low.split("\u202f")
    return f"{number_} to {high}" if high.endswith(f"\u202f{unit}") else f"{low} to {high}"


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _small(value: float) -> str:
    """8.4e-08 -> "8.4 · 10⁻⁸"."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}\u202f·\u202f10{str(int(power)).translate(_RAISED)}"

"""The tables and plots of docs/pxp.md, from the committed results: `python -m bench.experiments.page`.

Writes what stands between the two markers in docs/pxp.md, and docs/pxp_*.svg. Doing it again changes nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.readme import ROOT
from pxp_fast.files import atomic_write

from . import claims, plots, results
from .methods import BY_NAME, METHODS, SUBJECTS, Method, methods_of

START, END = "<!-- results: made by `python -m bench.experiments.page` -->", "<!-- end of results -->"
Records = dict[str, dict[str, Any]]
_SAYS = {1: "better", 0: "undecided", -1: "worse"}
_BASELINES = (
    "In brackets the difference of A_PR, ± standard error: over the same tasks of three classes, or, where these are "
    "not measured, with all ten classes, where the error is that of the images. Each row names every LRP of the tables."
)


def load(folder: Path) -> Records:
    """The result files by name, such as ``three_vit_head``."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def section(records: Records, weights: Records) -> str:
    """All that stands between the markers."""
    parts = ["### Networks", networks(weights)]
    for experiment, title in (("three", "Three classes"), ("all", "All ten classes")):
        if any(f"{experiment}_{subject.name}" in records for subject in SUBJECTS):
            parts += [f"### {title}", caption(records, experiment)]
            parts += ["A_PR; with nothing removed it would be the unpruned accuracy:"]
            parts += [table(records, experiment, results.a_pr, str)]
            parts += ["Top-PR:", table(records, experiment, results.top_pr, percent)]
            parts += [f"![Accuracy against units removed](pxp_{experiment}.svg)"]
    if any(name.startswith("references_") for name in records):
        parts += ["### Reference images", reference_caption(records), reference_table(records)]
        parts += ["![A_PR and agreement against reference images](pxp_references.svg)"]
    tuned = {
        subject.title + words: records[f"tuned_{subject.name}{ending}"]
        for subject in SUBJECTS
        for ending, words in (("", ""), ("_bounded", ", bounded initial relevance"))
        if f"tuned_{subject.name}{ending}" in records
    }
    if tuned:
        parts += ["### Optimised composites", tuned_table(tuned)]
    parts += ["### The paper's claims", claim_table(records)]
    parts += ["### Bounded initial relevance beside 1 at every logit", initial_table(records)]
    parts += ["### Where magnitude, activation or chance beats LRP", baseline_table(records), _BASELINES]
    parts += [machine(records)]
    return "\n\n".join(part for part in parts if part)


def networks(weights: Records) -> str:
    lines = ["| network | parameters | test accuracy | trained by | on |", "|---|---:|---:|---|---|"]
    for facts in weights.values():
        on = facts["environment"]
        lines.append(
            f"| {facts['network']} | {facts['parameters']:,} | {facts['accuracy']:.2%} | `{facts['command']}` | "
            f"{on['processor'] if on['device'] == 'cpu' else on['device']}, torch {on['torch']} |"
        )
    return "\n".join(lines)


def caption(records: Records, experiment: str) -> str:
    record = next(records[f"{experiment}_{s.name}"] for s in SUBJECTS if f"{experiment}_{s.name}" in records)
    per_class, judged = record["references_per_class"], record["judged_per_class"]
    if experiment == "three":
        tasks = len(record["tasks"])
        different = len({tuple(task) for task in record["tasks"]})
        what = (
            f"Mean ± standard error over {tasks} random choices of three classes"
            + (f", {different} of them different" if different < tasks else "")
            + "; the classifier is sliced to them"
        )
        doubt = (
            "The tasks share the network, the reference images and the test images, so they are not independent: the "
            "standard error is that of the choice of classes, and tells nothing of another network or of other "
            "images. Bold: the best, and what a paired difference of two standard errors does not tell from it."
        )
    else:
        what = f"The whole classifier; for random, mean ± standard error over {record['random_seeds']} orders"
        found = [records[f"all_{subject.name}"] for subject in SUBJECTS if f"all_{subject.name}" in records]
        worst = max(results.one_run(cell, one["rates"]).error for one in found for cell in one["cells"].values())
        doubt = (
            f"By the number of images that judge, an A_PR has a standard error of {worst:.3f} or less. Bold: the best "
            "A_PR, and what two standard errors of the difference do not tell from it; a Top-PR of a single run has "
            "no standard error, so none is bold."
        )
    return (
        f"{what}. {per_class} reference images per class from the training set; judged on {judged} test images per "
        f"class, in {record['judged_in']}, at {len(record['rates'])} rates, without retraining. {doubt}"
    )


def table(
    records: Records, experiment: str, measure: Callable[..., list[float]], text: Callable[[results.Estimate], str]
) -> str:
    """A row for each method, a column for each subject; in bold what nothing in the column is clearly better than."""
    subjects = [subject for subject in SUBJECTS if f"{experiment}_{subject.name}" in records]
    found: dict[str, dict[str, results.Estimate]] = {}
    for subject in subjects:
        record = records[f"{experiment}_{subject.name}"]
        for name, cell in record["cells"].items():
            found.setdefault(name, {})[subject.name] = results.estimate(measure(cell, record["rates"]))
    best = {s.name: best_of(records[f"{experiment}_{s.name}"], measure) for s in subjects}
    lines = ["| | " + " | ".join(subject.title for subject in subjects) + " |", "|---|" + "---:|" * len(subjects)]
    if measure is results.a_pr:
        whole = [results.estimate(unpruned(records[f"{experiment}_{subject.name}"])) for subject in subjects]
        lines.append("| *unpruned accuracy* | " + " | ".join(map(text, whole)) + " |")
    for method in (method for method in METHODS if method.name in found):
        row = found[method.name]
        cells = ["" if s.name not in row else bold(text(row[s.name]), method.name in best[s.name]) for s in subjects]
        lines.append(f"| {method.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_of(record: dict[str, Any], measure: Callable[..., list[float]]) -> set[str]:
    """The methods that cannot be told from the best of a column; none where a difference has no standard error."""
    cells, rates = record["cells"], record["rates"]
    values = {name: measure(cell, rates) for name, cell in cells.items()}
    best = max(values, key=lambda name: statistics.fmean(values[name]))

    def gap(name: str) -> results.Estimate:
        if len(values[best]) == len(values[name]) > 1:
            return results.difference(values[best], values[name])
        return results.apart(cells[best], cells[name], rates)

    if len(values[best]) == 1 and measure is not results.a_pr:
        return set()
    return {name for name in values if gap(name).side() != 1}


def unpruned(record: dict[str, Any]) -> list[float]:
    """Accuracy at rate 0, which every order shares, for the repetitions of the one that has fewest."""
    rows = min((cell for cell in record["cells"].values()), key=lambda cell: len(cell["correct"]))
    return [curve.accuracies[0] for curve in results.curves(rows, record["rates"])]


def bold(text: str, so: bool) -> str:
    return f"**{text}**" if so else text


def percent(value: results.Estimate) -> str:
    return f"{value.mean:.0%}" if value.error is None else f"{100 * value.mean:.1f} ± {100 * value.error:.1f} %"


def reference_caption(records: Records) -> str:
    record = next(record for name, record in records.items() if name.startswith("references_"))
    return (
        f"All ten classes, mean ± standard error over {record['draws']} draws; judged on {record['judged_per_class']} "
        f"test images per class. Agreement is the part of the units removed at a rate of {record['overlap_at']:.0%} "
        "that two draws without a common image both remove; orders that have nothing in common agree on "
        f"{record['overlap_at']:.0%}."
    )


def reference_table(records: Records) -> str:
    lines: list[str] = []
    for subject in SUBJECTS:
        record = records.get(f"references_{subject.name}")
        if record is None:
            continue
        if not lines:
            lines = ["| images per class | | " + " | ".join(map(str, record["counts"])) + " |"]
            lines.append("|---|---|" + "---:|" * len(record["counts"]))
        for name in (method.name for method in METHODS if method.name in record["cells"]):
            for measure, values in results.reference_curves(record, name).items():
                cells = " | ".join(str(value) for value in values)
                lines.append(f"| {subject.title}: {BY_NAME[name].title} | {measure} | {cells} |")
    return "\n".join(lines)


def tuned_table(found: Records) -> str:
    """What the search chose for each subject, and its A_PR on the training images that judged trials."""
    lines = [
        "| | low | mid | high | fully connected | softmax | stabilizer | ranked by | A_PR of trials: best, epsilon |"
    ]
    lines.append("|---" * 9 + "|")
    for title, record in found.items():
        composite = record["composite"]
        rules = [rule_text(composite[group]) for group in ("low", "mid", "high", "fully_connected")]
        ranked = "absolute" if record["magnitude"] else "signed"
        cells = [title, *rules, composite["softmax"], f"{composite['stabilizer']:g}", ranked]
        lines.append(
            f"| {' | '.join(cells)} | {record['a_pr']:.3f}, {record['a_pr_epsilon']:.3f} ({record['trials']}) |"
        )
    lines.append("")
    lines.append("In brackets the number of trials. A group that passes nothing on to a unit has no bearing.")
    return "\n".join(lines)


def rule_text(rule: str | dict[str, Any]) -> str:
    """A rule as a composite's file has it, in a few words."""
    if isinstance(rule, str):
        return rule
    values = [f"{key} {value:g}" for key, value in rule.items() if isinstance(value, int | float)]
    return f"{rule['rule']} ({', '.join(values)})" if values else rule["rule"]


def claim_table(records: Records) -> str:
    lines = ["| claim | verdict | measured |", "|---|---|---|"]
    for claim in claims.CLAIMS:
        findings = "; ".join(f"{one.subject}: {one.text} ({one.verdict})" for one in claim.findings(records))
        lines.append(f"| {claim.text} | **{claim.verdict(records)}** | {findings} |")
    return "\n".join(
        [
            "\n".join(lines),
            "",
            "Differences of A_PR over the same tasks of three classes, ± standard error, unless said otherwise. A "
            "claim holds where the number is more than two standard errors on its side of the threshold (0, unless the "
            "claim names another), and fails where it is as far on the other side; between, nothing is decided. A "
            "claim about several rivals holds where it holds beside each of them; the one shown is the hardest to "
            "beat.",
        ]
    )


def baseline_table(records: Records) -> str:
    """Weight magnitude, activation and chance beside every LRP of the tables, for every subject."""
    lines = ["| | beats | cannot be told from | is worse than |", "|---|---|---|---|"]
    for subject in SUBJECTS:
        relevance = [method for method in methods_of(subject) if method.criterion == "lrp" and method.scored]
        whole = records.get(f"all_{subject.name}", {"cells": {}})["cells"]
        for name in claims.BASELINES:
            gaps = {m: claims.paired(records, subject, name, m.name) for m in relevance}
            rows = {subject.title: {method: gap for method, gap in gaps.items() if gap is not None}}
            rates = records[f"all_{subject.name}"]["rates"] if whole else []
            rows[f"{subject.title}, all ten classes"] = {
                method: results.apart(whole[name], whole[method.name], rates)
                for method in relevance
                if gaps[method] is None and name in whole and method.name in whole
            }
            lines += [baseline_row(f"{title}: {BY_NAME[name].title}", row) for title, row in rows.items() if row]
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def initial_table(records: Records) -> str:
    """What bounded initial relevance changes, by itself and with the composite searched for from it."""
    names = [(name, f"{name}_bounded") for name in ("epsilon", "tuned")]
    lines = ["| | " + " | ".join(BY_NAME[before].title for before, _ in names) + " |", "|---" * (1 + len(names)) + "|"]
    for subject in SUBJECTS:
        gaps = [claims.paired(records, subject, after, before) for before, after in names]
        if any(gap is not None for gap in gaps):
            cells = ("" if gap is None else f"{claims.signed(gap)} ({_SAYS[gap.side()]})" for gap in gaps)
            lines.append(f"| {subject.title} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def baseline_row(title: str, gaps: dict[Method, results.Estimate]) -> str:
    cells = (
        "; ".join(f"{method.title} ({claims.signed(gap)})" for method, gap in gaps.items() if gap.side() == side)
        for side in (1, 0, -1)
    )
    return f"| {title} | {' | '.join(cells)} |"


def machine(records: Records) -> str:
    """Which machines made the results."""
    found = {
        f"{about['processor'] if about['device'] == 'cpu' else about['device']}, torch {about['torch']}"
        for record in records.values()
        for about in results.makers(record)
    }
    return f"*Made on {'; '.join(sorted(found))}. Raw results: `bench/results/experiments/`.*" if found else ""


def with_section(page: str, text: str) -> str:
    """The page with `text` between its markers."""
    if page.count(START) != 1 or page.count(END) != 1 or page.index(START) > page.index(END):
        raise ValueError(f"docs/pxp.md needs the lines {START} and {END}, once each and in this order")
    before, rest = page.split(START)
    return f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main(root: Path = ROOT) -> int:
    folder = root / "bench" / "results" / "experiments"
    records, weights = load(folder), load(root / "bench" / "experiments" / "weights")
    page = root / "docs" / "pxp.md"
    written = with_section(page.read_text(), section(records, weights))
    with atomic_write(page) as temporary:
        temporary.write_text(written)
    for experiment in ("three", "all"):
        if any(name.startswith(f"{experiment}_") for name in records):
            plots.draw_curves(records, experiment, root / "docs" / f"pxp_{experiment}.svg")
    if any(name.startswith("references_") for name in records):
        plots.draw_references(records, root / "docs" / "pxp_references.svg")
    print(page.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main())

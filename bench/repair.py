"""What repair without training does to accuracy: the demo's networks, on images that neither scored nor repaired.

``python -m bench.repair [NETWORK ...] [--units removable]``
"""

from __future__ import annotations

import argparse
import time

import torch

import pxp_fast as pxp
from pxp_fast import demo

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
CRITERIA = ("lrp", "magnitude")
METHODS = ("mean", "ridge")


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(demo.NETWORKS))
    parser.add_argument("--units", choices=("all", "removable"), default="all")
    parser.add_argument("--images", type=int, default=512, help="to repair with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference, labels = demo.images("reference")
    reference = demo.normalize(reference)
    shuffled = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))]
    pixels, answers = demo.images("test")
    judging = [(demo.normalize(pixels), answers)]
    for name in options.networks:
        model = demo.network(name)
        slimmer = pxp.Slimmer(model, reference[:2])
        units = None if options.units == "all" else "removable"
        unpruned = pxp.evaluate(model, judging).accuracy
        print(f"{name}, {options.units} units; unpruned {unpruned:.1%}, {len(answers)} images judge")
        print("criterion  rate   none" + "".join(f"{method:>7}" for method in METHODS) + "  seconds")
        for criterion in CRITERIA:
            batches = list(zip(reference.split(100), labels.split(100), strict=True))
            scores = pxp.score(model, batches, criterion=criterion)
            for rate in RATES:
                plan = pxp.plan(scores, rate, units=units, slimmer=slimmer)
                with pxp.masked(model, plan):
                    found = [pxp.evaluate(model, judging).accuracy]
                start = time.perf_counter()
                for method in METHODS:
                    repaired = pxp.repair(model, plan, shuffled.split(64), method, count=options.images).repaired(model)
                    found.append(pxp.evaluate(repaired, judging).accuracy)
                shown = "".join(f"{accuracy:7.1%}" for accuracy in found)
                print(f"{criterion:9s} {rate:5.0%}{shown}  {time.perf_counter() - start:7.1f}", flush=True)


if __name__ == "__main__":
    main()

"""Accuracy against FLOPs removed, without training: pxp_fast beside Torch-Pruning.

    python -m bench.compare_pruning
    python -m bench.compare_pruning --networks vit --targets 0.5

The CIFAR-10 networks of bench.experiments, the same reference images for all, judged on the same test images; every
cut is a really smaller network that leaves, as torch.utils.flop_counter counts, at most the FLOPs asked for. Each of
Torch-Pruning's importances runs with one ranking over all layers and with the same share of each layer, and the better
of both counts. Written to bench/results/compare_pruning.json after every cut; what is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pxp_fast as pxp
from pxp_fast.budget import Planned, plan_for
from pxp_fast.errors import PxpError
from pxp_fast.evaluate import evaluate
from pxp_fast.files import atomic_write
from pxp_fast.repair import METHODS

from .experiments import data, train
from .peers import versions
from .timing import machine

RESULTS = Path(__file__).parent / "results" / "compare_pruning.json"
NETWORKS = ("vgg16_bn", "resnet20", "vit")
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
REFERENCES, JUDGING, REPAIRING = 10, 200, 50  # images per class
STEPS = 10
CRITERIA = {
    "LRP": {},
    "Taylor": {"criterion": "taylor"},
    "magnitude": {"criterion": "magnitude"},
}
SCOPES = ("isomorphic",)
Cut = tuple[nn.Module, float]
"""A smaller network, and the fraction of the FLOPs that it leaves."""


def flops(model: nn.Module, image: Tensor) -> int:
    """Of a forward pass, attention written out."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    return counter.get_total_flops()


class Rival:
    """Torch-Pruning with one importance, for one network."""

    IMPORTANCES = {
        "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "Taylor": tp.importance.GroupTaylorImportance,
        "Hessian": tp.importance.GroupHessianImportance,
    }

    def __init__(self, model: nn.Module, reference: tuple[Tensor, Tensor], importance: str) -> None:
        self.model, self.reference, self.importance = model, reference, importance
        self.image = reference[0][:1]

    def cut(self, left: float, everywhere: bool) -> Cut:
        """Of the cuts that leave at most `left` of the FLOPs the smallest that bisecting the pruning ratio finds."""
        whole = flops(self.model, self.image)
        low, high = 0.0, 1.0
        best = None
        for _ in range(STEPS):
            ratio = (low + high) / 2
            small = self.pruned(ratio, everywhere)
            fraction = flops(small, self.image) / whole
            if fraction <= left:
                best, high = (small, fraction), ratio
            else:
                low = ratio
        if best is None:
            raise PxpError(f"Torch-Pruning leaves more than {left:.0%} of the FLOPs at any ratio")
        return best

    def pruned(self, ratio: float, everywhere: bool) -> nn.Module:
        model = copy.deepcopy(self.model)
        importance = self.IMPORTANCES[self.importance]()
        heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
        last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(data.CLASSES)]
        with warnings.catch_warnings():  # that class token and position table are cut along with the width
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                model, self.image, importance=importance, pruning_ratio=ratio, global_pruning=everywhere,
                ignored_layers=last, num_heads=heads,
            )  # fmt: skip
            self._see(model, importance)
            pruner.step()
        for module in model.modules():
            if hasattr(module, "qkv") and hasattr(module, "num_heads"):
                module.num_heads = pruner.num_heads.get(module.qkv, module.num_heads)
        return model

    def _see(self, model: nn.Module, importance: object) -> None:
        """Gradients of the reference images' loss, as the importance wants them."""
        if self.importance in ("L1", "L2"):
            return
        images, labels = self.reference
        model.zero_grad()
        if self.importance == "Taylor":
            nn.functional.cross_entropy(model(images), labels).backward()
            return
        importance.zero_grad()
        losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
        for loss in losses:
            model.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(model)


def ours(model: nn.Module, batches: list, slimmer: pxp.Slimmer, repairing: list) -> Iterator[tuple[str, Callable]]:
    """Each criterion of pxp_fast with each repair: a name, and what makes a cut."""
    for name, options in CRITERIA.items():
        scores = pxp.score(model, batches, **options)
        for scope in SCOPES:

            @functools.cache
            def planned(left: float, scores=scores, scope=scope) -> Planned:
                return plan_for(slimmer, scores, flops=left, scope=scope, units="coupled", clock=False)

            for method in METHODS:

                def cut(left: float, planned=planned, method=method) -> Cut:
                    found = planned(left)
                    repaired = pxp.repair(model, found.plan, repairing, method, captured=slimmer.captured)
                    return slimmer.slim(found.plan, repaired), found.achieved.ratio("flops")

                yield f"pxp_fast {name}, {scope}, {method}", cut


def rivals(model: nn.Module, reference: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Callable[[float], Cut]]]:
    for importance in Rival.IMPORTANCES:
        for everywhere, scope in ((True, "global"), (False, "layer")):
            rival = Rival(model, reference, importance)
            yield f"Torch-Pruning {importance}, {scope}", lambda left, r=rival, e=everywhere: r.cut(left, e)


def compare(name: str, targets: list[float], kept: dict, save: Callable[[], None]) -> None:
    """Fill the cells of one network: method -> target -> accuracy and what is left, or why there is none."""
    model = train.load(name)
    reference = data.images("train", REFERENCES)
    images, labels = data.images("train", REPAIRING)
    repairing = data.batches((images, labels), 250)
    judging = data.batches(data.images("test", JUDGING), 500)
    kept.setdefault("unpruned", evaluate(model, judging).accuracy)
    slimmer = pxp.Slimmer(model, reference[0][:2])
    methods = kept.setdefault("methods", {})
    for title, cut in [*rivals(model, reference), *ours(model, data.batches(reference, 250), slimmer, repairing)]:
        cells = methods.setdefault(title, {})
        for target in (target for target in targets if f"{target:g}" not in cells):
            started = time.perf_counter()
            try:
                small, left = cut(1 - target)
                accuracy = evaluate(small, judging).accuracy
                cells[f"{target:g}"] = {"accuracy": accuracy, "flops_left": round(left, 4)}
            except (PxpError, RuntimeError, ValueError, ZeroDivisionError, IndexError) as error:
                cells[f"{target:g}"] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            print(
                f"{name} {title} -{target:.0%}: {cells[f'{target:g}']} {time.perf_counter() - started:.1f} s",
                flush=True,
            )
            save()


def main(arguments: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.compare_pruning", description=__doc__, formatter_class=formatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--targets", nargs="+", type=float, default=list(TARGETS), help="fractions of the FLOPs to remove"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    given = sys.argv[1:] if arguments is None else arguments
    results = json.loads(options.out.read_text()) if options.out.is_file() else {"networks": {}}
    results |= {
        "command": " ".join(["python -m bench.compare_pruning", *given]),
        "machine": machine(options.threads),
        "versions": versions(),
        "references_per_class": REFERENCES,
        "judged_per_class": JUDGING,
        "repaired_with_per_class": REPAIRING,
        "date": time.strftime("%Y-%m-%d"),
    }

    def save() -> None:
        with atomic_write(options.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")

    for name in options.networks:
        compare(name, options.targets, results["networks"].setdefault(name, {}), save)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

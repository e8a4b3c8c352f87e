"""What each rule costs, in processor time of the epsilon rule, for pxp_fast and for zennit.

    python -m bench.bench_rules
    python -m bench.bench_rules --models resnet18 --rounds 5 --dtype bfloat16

Rules of layers are measured on CNNs, those of attention's softmax, which zennit does not have, on vision transformers.
Each rule takes turns with the epsilon rule of the same package, batch after batch in one process, and the ratio is the
median over the turns: whatever else the machine does falls on both. Written to bench/results/rules.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pxp_fast import memory
from pxp_fast.files import atomic_write
from pxp_fast.lrp import Composite
from pxp_fast.lrp.registry import rule
from pxp_fast.lrp.softmax import SOFTMAX_RULES

from .networks import batches, network
from .peers import versions
from .peers.interface import Peer
from .peers.pxp import PxpFast
from .peers.zennit import Zennit
from .timing import Call, machine, measure

RESULTS = Path(__file__).parent / "results" / "rules.json"
RULES = ("z-plus", "gamma", "alpha-beta", "flat", "w-square")
SOFTMAX = {f"softmax {name}": name for name in SOFTMAX_RULES if name != "epsilon"}
MODELS = ("vgg16", "resnet18", "resnet50", "vit_s_16", "vit_b_16")
MAXIMUM = {"z-plus": 2.1, "gamma": 2.1, "alpha-beta": 2.1, "softmax z-plus": 1.5}  # that the project sets itself


def zennit_rule(name: str):
    from zennit import rules

    kinds = {"z-plus": rules.ZPlus, "alpha-beta": rules.AlphaBeta, "flat": rules.Flat, "w-square": rules.WSquare}
    return rules.Gamma(0.25) if name == "gamma" else rules.Epsilon(1e-6) if name == "epsilon" else kinds[name]()


def build(package: str, name: str, model: str, images: Tensor, dtype: torch.dtype) -> Peer:
    """A contender whose convolutions and linear layers, or whose attention, all follow one rule."""
    net = network(model, images.shape[-1])
    if package == "zennit":
        return Zennit(net, images, dtype, rule=zennit_rule(name))
    composite = Composite(softmax=SOFTMAX[name]) if name in SOFTMAX else Composite(layers=(("*", rule(name)),))
    return PxpFast(net, images, dtype, composite=composite)


def rivals(name: str, model: str, packages: list[str]) -> list[str]:
    """The packages that have the rule, and a use for it in the network."""
    if (name in SOFTMAX) != model.startswith("vit"):
        return []
    return [package for package in packages if package == "pxp_fast" or name not in SOFTMAX]


def turns(contenders: list[Callable[[int], object]], rounds: int) -> list[list[Call]]:
    """Times of each contender, round by round; the first round is not kept, and every other one runs backwards."""
    found: list[list[Call]] = [[] for _ in contenders]
    for turn in range(-1, rounds):
        order = range(len(contenders)) if turn % 2 else reversed(range(len(contenders)))
        for index in order:
            call = measure(lambda index=index, turn=turn: contenders[index](turn))
            if turn >= 0:
                found[index].append(call)
    return found


def compare(package: str, name: str, model: str, options: argparse.Namespace) -> dict:
    """A rule against the epsilon rule."""
    dtype = getattr(torch, options.dtype)
    data = batches(2, options.batch, options.size)
    peers = [build(package, kind, model, data[0][0], dtype) for kind in ("epsilon", name)]
    prepared = [[(peer.prepare(images), labels) for images, labels in data] for peer in peers]
    calls = [lambda turn, i=i: peers[i].run(*prepared[i][turn % 2]) for i in (0, 1)]
    epsilon, ours = turns(calls, options.rounds)
    ratios = [mine.cpu / theirs.cpu for mine, theirs in zip(ours, epsilon, strict=True)]
    milliseconds = 1e3 / options.batch
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "epsilon_cpu_ms": round(statistics.median(c.cpu for c in epsilon) * milliseconds, 2),
        "cpu_ms": round(statistics.median(c.cpu for c in ours) * milliseconds, 2),
        "others": round(statistics.mean(c.others for c in epsilon + ours), 2),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.bench_rules", description=__doc__, formatter_class=formatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--rules", nargs="+", choices=[*RULES, *SOFTMAX], default=[*RULES, *SOFTMAX], metavar="NAME")
    parser.add_argument("--packages", nargs="+", choices=("pxp_fast", "zennit"), default=["pxp_fast", "zennit"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--retain", action="store_true", help="keep freed memory, as the pxp-fast command does")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    torch.set_num_threads(options.threads)
    if options.retain:
        memory.retain()
    results = {
        "command": " ".join(["python -m bench.bench_rules", *given]),
        "machine": machine(options.threads),
        "versions": versions(),
        **{field: getattr(options, field) for field in ("batch", "size", "rounds", "dtype", "retain")},
        "ratios_compare": "cpu_ms",
        "maximum": MAXIMUM,
        "date": time.strftime("%Y-%m-%d"),
        "models": {},
    }
    for model in options.models:
        entry = results["models"][model] = {}
        for name in options.rules:
            packages = rivals(name, model, options.packages)
            if not packages:
                continue
            entry[name] = {package: compare(package, name, model, options) for package in packages}
            figures = "  ".join(
                f"{package} {found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f}), "
                f"{found['cpu_ms']:.1f} ms an image"
                for package, found in entry[name].items()
            )
            print(f"{model:10s} {name:19s} {figures}", flush=True)
            with atomic_write(options.out) as temporary:
                temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

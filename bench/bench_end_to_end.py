"""Images per second of scoring a network, beside torch's own forward and input gradient and the peers in bench/peers.

    python -m bench.bench_end_to_end
    python -m bench.bench_end_to_end --device cuda --batch 64

All contenders of a network take turns, batch after batch and each time in another order, so that whatever else the
machine does falls on all of them alike. Ratios compare processor time on a CPU and wall time on CUDA, where a turn is
several batches with one synchronisation after the last. Results go to bench/results/end_to_end.json, those of CUDA to
bench/results/end_to_end_cuda.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pxp_fast.files import atomic_write

from .contest import RATIO, RATIO_ALIKE, clock_of, compare
from .networks import NETWORKS
from .peers import CONTENDERS, YARDSTICK, contenders, versions, yardstick_like
from .process import Job
from .timing import machine

RESULTS = Path(__file__).parent / "results"


def table(network: str, found: dict[str, dict]) -> str:
    columns = ("images/s", "cpu ms", "wall ms", "ratio", "alike", "MB held", "in call")
    title = f"{network:36s} " + " ".join(f"{c:>{w}s}" for c, w in zip(columns, (9, 8, 8, 6, 6, 8, 8), strict=True))
    lines = [f"{title} undisturbed"]
    for name, entry in found.items():
        if "failed" in entry:
            lines.append(f"  {name:34s} failed: {entry['failed']}")
            continue
        ratios = "".join(f" {entry.get(field, float('nan')):6.2f}" for field in (RATIO, RATIO_ALIKE))
        held, call = ("" if entry[f] is None else f"{entry[f]:.0f}" for f in ("build_mb", "call_mb"))
        lines.append(
            f"  {name:34s} {entry['images_per_second']:9.1f} {entry['cpu_ms']:8.2f} {entry['wall_ms']:8.2f}{ratios} "
            f"{held:>8s} {call:>8s} {entry['undisturbed']}/{entry['calls']}"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.bench_end_to_end", description=__doc__, formatter_class=formatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=4, help="different batches that take turns (default 4)")
    parser.add_argument("--calls", type=int, help="batches per turn (default 1, on CUDA 10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--retain", action="store_true", help="all keep freed memory, as the pxp-fast command does")
    parser.add_argument("--out", type=Path, help=f"default {RESULTS}/end_to_end.json")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    options.calls = options.calls or (10 if cuda else 1)
    options.out = options.out or RESULTS / ("end_to_end_cuda.json" if cuda else "end_to_end.json")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    fields = ("device", "batch", "inputs", "calls", "repeats", "retain")
    results = {
        "command": " ".join(["python -m bench.bench_end_to_end", *given]),
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        **{field: getattr(options, field) for field in fields},
        "ratios_compare": clock_of(options.device),
        "date": time.strftime("%Y-%m-%d"),
        "models": {},
    }
    for network in options.models:
        chosen = [n for n in contenders(network, options.device) if n in options.contenders]
        like = {YARDSTICK} | {yardstick_like(name, network) for name in chosen}
        shared = {field: getattr(options, field) for field in ("batch", "device", "threads", "inputs", "retain")}
        names = [name for name in CONTENDERS if name in like.union(chosen)]
        jobs = [Job(name, network, **shared) for name in names]
        found = compare(jobs, options.calls, options.repeats)
        results["models"][network] = found
        print(table(network, found), flush=True)
        with atomic_write(options.out) as temporary:  # after every network, so that an interrupted run leaves its part
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

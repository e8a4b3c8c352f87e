"""Time per image of scoring a network, beside zennit, LXT and torch's own forward and input gradient.

``python -m bench.bench_end_to_end`` lets all contenders of a network take turns, batch after batch, so that whatever
else the machine does falls on all of them alike; compare their processor time. Results go to
``bench/results/end_to_end.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pxp_fast.files import atomic_write

from .peers import CONTENDERS, NETWORKS, Peer, versions
from .timing import Call, machine, record, summarise

RESULTS = Path(__file__).parent / "results" / "end_to_end.json"
YARDSTICK = "gradient"


def compare(model: str, contenders: list[str], images: int, threads: int, repeats: int) -> dict[str, dict]:
    """Contender -> times per image, ratio to the yardstick in processor time, peak memory."""
    peers = []
    calls: dict[str, list[Call]] = {name: [] for name in contenders}
    try:
        for name in contenders:
            peers.append(Peer(name, model, images, threads))
            peers[-1].run()  # the first call allocates and warms up
        for _ in range(repeats):
            for peer in peers:
                calls[peer.contender].append(peer.run())
    finally:
        peaks = {peer.contender: peer.close() for peer in peers}
    found = {name: record(summarise(calls[name], images)) for name in contenders}
    for name, entry in found.items():
        entry["ratio"] = round(entry["cpu_ms"] / found[YARDSTICK]["cpu_ms"], 3)
        entry["peak_mb"] = round(peaks[name])
    return found


def table(model: str, found: dict[str, dict]) -> str:
    lines = [f"{model:20s} {'cpu ms/image':>13s} {'ratio':>6s} {'wall ms/image':>14s} {'peak MB':>8s} undisturbed"]
    for name, entry in found.items():
        lines.append(
            f"  {name:18s} {entry['cpu_ms']:13.1f} {entry['ratio']:6.2f} {entry['wall_ms']:14.1f} "
            f"{entry['peak_mb']:8d} {entry['undisturbed']}/{entry['calls']}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_end_to_end", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)

    results = {
        "machine": machine(options.threads),
        "versions": versions(),
        "batch": options.batch,
        "repeats": options.repeats,
        "date": time.strftime("%Y-%m-%d"),
        "models": {},
    }
    for model in options.models:
        chosen = [
            name for name, (_, _, networks) in CONTENDERS.items()
            if model in networks and (name in options.contenders or name == YARDSTICK)
        ]  # fmt: skip
        found = compare(model, chosen, options.batch, options.threads, options.repeats)
        results["models"][model] = found
        print(table(model, found), flush=True)
        with atomic_write(options.out) as temporary:  # after every network, so that an interrupted run leaves its part
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

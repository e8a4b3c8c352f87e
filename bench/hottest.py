"""Where a scored batch's device time goes: `python -m bench.hottest [--network resnet50] [--batch 64]`.

Prints the kernels (on a CPU the operators) that take longest and, after "kernels:", the names of pxp_fast's own three,
for a profiler to look into. ``--plain`` scores batches without profiling, for that profiler to watch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .networks import NETWORKS, batches, network
from .peers import CONTENDERS, build


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.hottest", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50", metavar="NAME")
    parser.add_argument("--contender", choices=list(CONTENDERS), default="pxp_fast bfloat16", metavar="NAME")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ((images, labels),) = batches(1, options.batch)
    images, labels = images.to(device), labels.to(device)
    peer = build(options.contender, network(options.network).to(device), images)
    images = peer.prepare(images)
    for _ in range(3):
        peer.run(images, labels)
    if options.plain:
        return 0
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds) as profiler:
        peer.run(images, labels)
        if device == "cuda":
            torch.cuda.synchronize()
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    rows = [{"name": e.key, "us": round(getattr(e, field), 1), "calls": e.count} for e in events if getattr(e, field)]
    whole = sum(row["us"] for row in rows)
    for row in rows[:20]:
        print(f"{row['us']:10.1f} us {row['us'] / whole:6.1%} {row['calls']:5d} x  {row['name'][:110]}")
    if options.out:
        options.out.write_text(json.dumps({"what": " ".join(sys.argv[1:]), "device": device, "rows": rows}, indent=1))
    ours = dict.fromkeys(found[1] for row in rows if (found := re.search(r"pxp::cuda::(\w+)", row["name"])))
    print("kernels:", *list(ours)[:3])
    return 0


if __name__ == "__main__":
    sys.exit(main())

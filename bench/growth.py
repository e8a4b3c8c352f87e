"""Time and memory of scoring against batch size, image size and the size of the reference set.

    python -m bench.growth [--networks resnet18 vit_s_16] [--repeats 5] [--device cuda]

pxp_fast beside torch's own forward and input gradient in the same dtype and layout, in float32 and bfloat16. Writes
bench/results/growth.json and docs/growth.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from pxp_fast.files import atomic_write

from .contest import clock_of, compare
from .figures import style
from .networks import NETWORKS
from .peers import versions, yardstick_like
from .process import Job
from .timing import machine

RESULTS = Path(__file__).parent / "results" / "growth.json"
PLOT = Path("docs/growth.svg")
OURS = ("pxp_fast", "pxp_fast bfloat16")
# What grows, and the label of its axis.
AXES = {"batch": "images per batch", "size": "pixels per side", "images": "images in the reference set"}
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (96, 160, 224, 288, 384)
IMAGES = (8, 32, 128, 512)


def measure(job: Job, axis: str, value: int, repeats: int) -> dict[str, dict]:
    """Times and memory of all contenders at one point of one axis."""
    names = {name: None for ours in OURS for name in (yardstick_like(ours, job.network), ours)}
    given = dataclasses.replace(job, **({axis: value} if axis != "images" else {}))
    jobs = [dataclasses.replace(given, contender=name) for name in names]
    if axis == "images":  # one turn is the whole set, long enough to need no repeats
        return compare(jobs, max(1, value // job.batch), 1)
    return compare(jobs, 10 if job.device == "cuda" else 1, repeats)


def draw(record: dict, path: Path) -> None:
    """Time per image and peak memory, a pair of rows per network."""
    pyplot = style()
    networks = list(record["networks"])
    rows = [(name, field) for name in networks for field in (record["clock"], "peak_mb")]
    figure, plots = pyplot.subplots(len(rows), 3, figsize=(9.5, 2.1 * len(rows)), squeeze=False, layout="constrained")
    for line, (network, field) in zip(plots, rows, strict=True):
        for plot, (axis, label) in zip(line, AXES.items(), strict=True):
            points = record["networks"][network][axis]
            for contender in points[next(iter(points))]:
                ours, narrow = contender in OURS, "bfloat16" in contender
                shown = [(int(at), found[contender].get(field)) for at, found in points.items()]
                shown = [pair for pair in shown if pair[1] is not None]
                plot.plot(
                    *zip(*shown, strict=True) if shown else ((), ()),
                    color="#0b6e69" if ours else "#7b8794",
                    ls="--" if narrow else "-",
                    marker=".",
                    label=("pxp_fast" if ours else "forward + input gradient") + (", bfloat16" if narrow else ""),
                )
            if axis != "size":
                plot.set_xscale("log", base=2)
            plot.set_xticks([int(at) for at in points], list(points))
            plot.minorticks_off()
            plot.set_ylim(bottom=0)
            plot.grid(color="#d9dee3", lw=0.6)
            plot.spines[["top", "right"]].set_visible(False)
            plot.set_xlabel(label if (network, field) == rows[-1] else "")
        what = "peak memory (MB)" if field == "peak_mb" else "ms per image"
        line[0].set_ylabel(f"{network}\n{what}")
    handles, labels = plots[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.growth", description=__doc__, formatter_class=formatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet18", "vit_s_16"], metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--size", nargs="+", type=int, default=SIZES, help="pixels per side, multiples of 32")
    parser.add_argument("--images", nargs="+", type=int, default=IMAGES, help="images in the reference set")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    record = {
        "command": " ".join(["python -m bench.growth", *given]),
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        "device": options.device,
        "clock": clock_of(options.device),
        "repeats": options.repeats,
        "date": time.strftime("%Y-%m-%d"),
        "networks": {},
    }
    for network in options.networks:
        job = Job(OURS[0], network, device=options.device, threads=options.threads, inputs=2)
        points = record["networks"][network] = {axis: {} for axis in AXES}
        for axis in AXES:
            for value in getattr(options, axis):
                points[axis][str(value)] = found = measure(job, axis, value, options.repeats)
                line = (f"{n} {e.get(record['clock'], 'failed')} ms {e.get('peak_mb')} MB" for n, e in found.items())
                print(f"{network} {axis} {value}: {'; '.join(line)}", flush=True)
                with atomic_write(options.out) as temporary:
                    temporary.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.plot)
    print(f"written: {options.out}, {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The README's table of speed, the rules' costs and the plots, from bench/results: `python -m bench.readme`.

Writes what stands between two markers in README.md and in docs/rules.md, docs/speed.svg, and, where their results are
there, docs/growth.svg and docs/pruning.svg. Doing it again changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pxp_fast.files import atomic_write

from . import figures, growth
from .contest import RATIO

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "vgg16_bn": "VGG-16-BN",
    "vit_s_16": "ViT-S/16",
    "vit_b_16": "ViT-B/16",
}
# Contender -> what the README calls it, in the order of its rows; {name} stands for a version.
LABELS = {
    "gradient": "torch: forward + input gradient",
    "gradient graph": "the same, CUDA graph",
    "gradient channels-last": "the same, channels-last",
    "gradient channels-last graph": "the same, channels-last, CUDA graph",
    "zennit": "zennit {zennit}",
    "hooks": "zennit {zennit}, hooks and copies, one image at a time",
    "lxt": "LXT {lxt}",
    "lxt+epsilon": "LXT {lxt}, with epsilon on linear layers",
    "captum": "captum {captum}",
    "torch_pruning": "Torch-Pruning {torch-pruning}, Taylor importance",
    "compiled": "the same rule by hand, torch.compile",
    "compiled graph": "the same rule by hand, torch.compile, CUDA graph",
    "pxp_fast exact": "**pxp_fast**, float32, `exact=True`",
    "pxp_fast": "**pxp_fast**, float32",
    "pxp_fast graph": "**pxp_fast**, float32, CUDA graph",
    "gradient bfloat16": "torch: forward + input gradient, bfloat16",
    "gradient bfloat16 graph": "the same, CUDA graph",
    "gradient bfloat16 channels-last": "the same, channels-last",
    "gradient bfloat16 channels-last graph": "the same, channels-last, CUDA graph",
    "compiled bfloat16": "the same rule by hand, torch.compile, bfloat16",
    "compiled bfloat16 graph": "the same rule by hand, torch.compile, bfloat16, CUDA graph",
    "pxp_fast bfloat16": "**pxp_fast**, bfloat16",
    "pxp_fast bfloat16 graph": "**pxp_fast**, bfloat16, CUDA graph",
}


def table(record: dict) -> str:
    """Images per second in Markdown: a column per network, a row per contender; what did not run stays empty."""
    networks = [name for name in NETWORKS if name in record["models"]]
    lines = ["| images per second | " + " | ".join(NETWORKS[name] for name in networks) + " |"]
    lines.append("|---|" + "---:|" * len(networks))
    for contender, label in LABELS.items():
        found = [record["models"][name].get(contender, {}).get("images_per_second") for name in networks]
        if any(found):
            cells = " | ".join("" if speed is None else number(speed) for speed in found)
            lines.append(f"| {label.format_map(record['versions'])} | {cells} |")
    return "\n".join(lines)


def number(speed: float) -> str:
    return f"{speed:.1f}" if speed < 100 else f"{speed:,.0f}"


def caption(record: dict, path: str) -> str:
    """What was measured, on what, how, and by which command."""
    machine, batch, repeats = record["machine"], record["batch"], record["repeats"]
    if record["device"] == "cuda":
        where = f"one {machine['gpu']} ({machine['gpu_memory_gb']:.0f} GB), images already on it"
    else:
        where = f"{machine['threads']} of {machine['cores']} cores ({machine['processor']})"
    entries = [entry for found in record["models"].values() for entry in found.values() if "calls" in entry]
    quiet, calls = (sum(entry[field] for entry in entries) for field in ("undisturbed", "calls"))
    spread = max(entry["wall_ms"] / entry["fastest_wall_ms"] for entry in entries) - 1
    return (
        f"*Scoring every unit at 224 px, batch {batch}, on {where}: medians of {repeats} interleaved repeats, each "
        f"contender in a process of its own; {quiet} of {calls} timed turns saw no other load on the machine, and "
        f"medians lie up to {spread:.0%} above the fastest turn. Made by "
        f"`{record['command']}` ({record['date']}); all figures, with processor time and memory, in `{path}`.*"
    )


def with_memory_kept(record: dict, retained: dict) -> str:
    """Times beside torch's where every contender keeps freed memory, and in brackets where only pxp_fast does."""

    def ratios(found: dict) -> str:
        return " / ".join(f"{found[name][RATIO]:.2f}" for name in ("pxp_fast", "pxp_fast bfloat16"))

    cells = [
        f"{NETWORKS[name]} {ratios(found)} ({ratios(record['models'][name])})"
        for name, found in retained["models"].items()
        if "pxp_fast bfloat16" in found and "pxp_fast bfloat16" in record["models"].get(name, {})
    ]
    return (
        "*`pxp.score` keeps freed memory while it works, which spares it page faults; the other contenders run as they "
        "are, at the allocator's defaults. Where all of them keep it (`--retain`), pxp_fast's processor time beside "
        f"torch's float32 forward + input gradient, in float32 / bfloat16, is {', '.join(cells)}; in brackets that of "
        "the table above.*"
    )


def section(results: Path) -> str:
    """All that stands between the markers."""
    parts = []
    for device, title in (("", "CPU"), ("_cuda", "GPU")):
        path = results / f"end_to_end{device}.json"
        if path.exists():
            record = json.loads(path.read_text())
            parts += [table(record), caption(record, f"bench/results/{path.name}")]
            retained = results / f"end_to_end{device}_retained.json"
            if retained.exists():
                parts.append(with_memory_kept(record, json.loads(retained.read_text())))
        else:
            parts.append(f"*No {title} figures: none was measured.*")
    parts.append("![Time per image beside torch's forward and input gradient](docs/speed.svg)")
    parts.append(
        "*Time per image as a multiple of torch's own forward and input gradient in float32, on the CPU: shorter is "
        "faster.*"
    )
    return "\n\n".join(parts)


def rule_table(record: dict) -> str:
    """What each rule costs beside the epsilon rule of the same package, and what of that is allowed."""
    packages = {"pxp_fast": "pxp_fast", "zennit": f"zennit {record['versions']['zennit']}"}
    lines = ["| processor time beside epsilon | | " + " | ".join(packages.values()) + " | at most |"]
    lines.append("|---|---|---:|---:|---:|")
    for network, rules in record["models"].items():
        for rule, found in rules.items():
            cells = [f"{found[name]['ratio']:.2f}" if name in found else "" for name in packages]
            most = record["maximum"].get(rule, "")
            lines.append(f"| {NETWORKS[network]} | `{rule}` | {' | '.join(cells)} | {most} |")
    lines.append("")
    lines.append(
        f"*Medians of {record['rounds']} turns, batch {record['batch']}, {record['dtype']}, "
        f"{record['machine']['threads']} cores ({record['machine']['processor']}). Made by `{record['command']}` "
        f"({record['date']}).*"
    )
    return "\n".join(lines)


def pruning_table(record: dict) -> str:
    """Accuracy at every cut of the FLOPs, for each way of ranking the better of its scopes."""
    targets = sorted(
        {t for found in record["networks"].values() for m in found["methods"].values() for t in m}, key=float
    )
    lines = ["| accuracy (%) at | | " + " | ".join(f"-{float(t):.0%} FLOPs" for t in targets) + " |"]
    lines.append("|---|---|" + "---:|" * len(targets))
    for network, found in record["networks"].items():
        rows: dict[str, list[float]] = {}
        for title, cells in found["methods"].items():
            name, _, rest = title.partition(", ")
            repair = rest.partition(", ")[2]
            row = rows.setdefault(f"{name}, {repair} repair" if repair else name, [0.0] * len(targets))
            row[:] = [max(a, cells.get(t, {}).get("accuracy", 0.0)) for a, t in zip(row, targets, strict=True)]
        best = [max(column) for column in zip(*rows.values(), strict=True)]
        lines.append(
            f"| {network} | unpruned | " + " | ".join([f"{100 * found['unpruned']:.1f}"] * len(targets)) + " |"
        )
        for title, row in rows.items():
            texts = [f"{100 * a:.1f}" if a else "" for a in row]
            texts = [f"**{text}**" if a == top else text for text, a, top in zip(texts, row, best, strict=True)]
            lines.append(f"| {network} | {title} | {' | '.join(texts)} |")
    per_class = {name: record[f"{name}_per_class"] for name in ("references", "judged", "repaired_with")}
    lines.append("")
    lines.append(
        "*The networks of [pxp.md](pxp.md) on CIFAR-10, without training: every network is really smaller, its FLOPs "
        f"counted by PyTorch. {per_class['references']} reference images per class for all, {per_class['judged']} test "
        f"images per class judge, repair reads {per_class['repaired_with']} training images per class without labels. "
        "Of each way of ranking the better of its scopes (Torch-Pruning: all layers together, or a share of each; "
        f"pxp_fast: isomorphic). Torch-Pruning {record['versions']['torch-pruning']}. Made by "
        f"{record['command']} ({record['date']}); all figures in `bench/results/compare_pruning.json`.*"
    )
    return "\n".join(lines)


def with_section(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of this name."""
    start, end = f"<!-- {name}: made by `python -m bench.readme` -->", f"<!-- end of {name} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page needs the lines {start} and {end}, once each and in this order")
    before, rest = page.split(start)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def draw(record: dict, path: Path) -> None:
    """A panel per network: every contender's time as a multiple of the yardstick's."""
    pyplot = figures.style()
    networks = [name for name in NETWORKS if name in record["models"]]
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    tallest = max(len(found) for found in record["models"].values())
    size = (9.5, (0.21 * tallest + 0.5) * rows)
    figure, plots = pyplot.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for plot in plots.flat[len(networks) :]:
        plot.remove()
    for plot, network in zip(plots.flat, networks, strict=False):
        found = record["models"][network]
        shown = [name for name in reversed(LABELS) if found.get(name, {}).get(RATIO) is not None]
        ratios = [found[name][RATIO] for name in shown]
        colours = ["#0b6e69" if "pxp_fast" in n else "#7b8794" if "gradient" in n else "#c3cad1" for n in shown]
        bars = plot.barh(range(len(shown)), ratios, color=colours, height=0.7)
        plot.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, fontsize=7)
        plot.set_yticks(range(len(shown)), shown, fontsize=7)
        plot.axvline(1, color="#3e4c59", lw=0.8)
        plot.set_title(NETWORKS[network], fontsize=9)
        plot.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(root: Path = ROOT) -> int:
    results = root / "bench" / "results"
    sections = [("README.md", "speed", section(results))]
    rules = results / "rules.json"
    if rules.exists():
        sections.append(("docs/rules.md", "costs", rule_table(json.loads(rules.read_text()))))
    cuts = results / "compare_pruning.json"
    if cuts.exists():
        sections.append(("docs/slim.md", "cuts", pruning_table(json.loads(cuts.read_text()))))
    for page, name, text in sections:
        written = with_section((root / page).read_text(), name, text)
        with atomic_write(root / page) as temporary:
            temporary.write_text(written)
        print(page)
    for source, drawing, plot in (
        ("end_to_end", draw, "speed"),
        ("growth", growth.draw, "growth"),
        ("demo_curves", figures.draw, "pruning"),
    ):
        path = results / f"{source}.json"
        if path.exists():
            drawing(json.loads(path.read_text()), root / "docs" / f"{plot}.svg")
            print(f"docs/{plot}.svg from {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

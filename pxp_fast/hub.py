"""What a saved model's folder has for the Hugging Face Hub: timm's configuration and a model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint_record import CheckpointRecord
from .report.words import percent

CONFIG, CARD = "config.json", "README.md"


def write(folder: Path, model: nn.Module, record: CheckpointRecord) -> None:
    """Write the model card and, for a model of timm, its configuration, with which timm loads it if nothing is cut."""
    timm = record.architecture.startswith("timm:")
    if timm:
        from timm.models._hub import save_config_for_hf

        labels = {} if record.class_names is None else {"label_names": list(record.class_names)}
        with contextlib.suppress(ValueError):  # timm could not build it: a size that it was given is another one now
            save_config_for_hf(model, str(folder / CONFIG), labels, model_args=record.arguments)
    (folder / CARD).write_text(card(record, timm, _license(model)), encoding="utf-8")


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """The arguments of the constructor, where a model of timm remembers them; with what became of them since."""
    remembered = getattr(model, "_model_args", None)
    if not isinstance(remembered, dict):
        return {}
    from timm.models import _hub

    now = getattr(_hub, "get_model_args", None)
    return dict(remembered) | ({} if now is None else now(model))


def card(record: CheckpointRecord, timm: bool, license: str | None) -> str:
    """The model card: what was removed, what it costs, what was measured, how to load it."""
    slim, usual = record.slim, timm and not record.changes.structural and not record.changes.attributes
    lines = ["---", "tags:", "- image-classification", *(["- timm"] if timm else []), "- pxp_fast"]
    lines += [f"library_name: {'timm' if usual else 'pxp_fast'}", *([f"license: {license}"] if license else []), "---"]
    lines += ["", f"# {record.architecture}{', pruned' if record.plans else ''}", ""]
    if record.plans:
        lines += [f"{_removed(record)}", ""]
    if slim is not None:
        lines += ["|  | before | after |", "|---|---:|---:|"]
        lines += [f"| {what} | {a:,} | {b:,} |" for what, a, b in _costs(record)]
        lines += [
            "",
            "Floating-point operations are counted for one image, a multiplication and an addition apart.",
            "",
        ]
    if record.accuracy:
        lines += ["## Accuracy", "", "| network | top-1 | 95 % interval | images |", "|---|---:|---:|---:|"]
        for name, hits in record.accuracy.items():
            low, high = hits.interval
            lines.append(
                f"| {name} | {percent(hits.accuracy, 2)} | {percent(low)} to {percent(high)} | {hits.total:,} |"
            )
        lines.append("")
    lines += ["## Use", "", "```python", *_use(record, usual), "```", ""]
    if record.plans:
        lines += ["## What was removed", "", *_table(record), ""]
    made = ", ".join(f"{name} {found}" for name, found in record.versions.items())
    if record.source:
        source = f" (sha256 {record.source_sha256[:16]}...)" if record.source_sha256 else ""
        lines += [f"Weights before pruning: {Path(record.source).name}{source}."]
    return "\n".join([*lines, f"Made with {made}.", ""])


def _removed(record: CheckpointRecord) -> str:
    plan = record.plans[-1]
    text = f"{plan.removed_count:,} of {plan.total_count:,} units ({_kinds(g.kind for g in plan.groups)}) were removed"
    if len(record.plans) > 1:
        text = f"In {len(record.plans)} steps units were removed; in the last {text}"
    if record.slim is None:
        return f"{text}: they are masked, so that the network is as large as before."
    return f"{text}: {record.slim.cut:,} are cut out, {record.slim.zeros:,} stay as zeros."


def _kinds(kinds: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(f"{kind}s" for kind in kinds))


def _costs(record: CheckpointRecord) -> list[tuple[str, int, int]]:
    before, after = record.slim.before, record.slim.after
    return [("parameters", before.parameters, after.parameters), ("FLOPs", before.flops, after.flops)]


def _table(record: CheckpointRecord) -> list[str]:
    if record.slim is None:
        rows = [(g.name, g.kind, g.count, len(g.removed)) for g in record.plans[-1].groups]
        head = ["| layer | unit | before | masked |", "|---|---|---:|---:|"]
    else:
        rows = [(s.name, s.kind, s.count, s.cut, s.removed - s.cut) for s in record.slim.layers]
        head = ["| layer | unit | before | cut out | zeros |", "|---|---|---:|---:|---:|"]
    return [*head, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def _use(record: CheckpointRecord, usual: bool) -> list[str]:
    lines = ["import pxp_fast", ""]
    trust = "" if record.architecture.startswith(("timm:", "torchvision:", "demo:")) else ", trust=True"
    lines.append(f'model = pxp_fast.load("path/to/this/folder"{trust})')
    if usual:
        lines = ["import timm", "", 'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)']
    images = record.preprocess
    return [*lines, f"# images {list(images.input_size)}, mean {list(images.mean)}, std {list(images.std)}"]


def _license(model: nn.Module) -> str | None:
    config = getattr(model, "pretrained_cfg", None)
    return config.get("license") if isinstance(config, dict) else None

"""A run's findings, written down rather than computed."""

from __future__ import annotations

import torch

from pxp_fast.heatmaps import HeatMaps
from pxp_fast.records import (
    AgreementRecord,
    CostsRecord,
    Hits,
    LatencyRecord,
    LayerRecord,
    PairedRecord,
    SlimmedRecord,
    Spread,
    WorkRecord,
)
from pxp_fast.results import (
    ClassRecord,
    CurveRecord,
    DataRecord,
    HeatMapRecord,
    ModelRecord,
    Results,
    SkippedRecord,
)

RATES = tuple(step / 20 for step in range(20))


def curve(order: str, seed: int | None, slope: float) -> CurveRecord:
    accuracies = tuple(max(0.1, 0.9 - slope * rate) for rate in RATES)
    return CurveRecord(
        order=order,
        seed=seed,
        rates=RATES,
        accuracies=accuracies,
        removed=tuple(int(40 * rate) for rate in RATES),
        a_pr=sum(accuracies) / 20,
        top_pr=max(rate for rate, accuracy in zip(RATES, accuracies, strict=True) if accuracy >= 0.95 * 0.9),
    )


def results(**changes) -> Results:
    values = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "pxp-fast run a:b --data 'my images'",
        "config": {"order": "least", "seed": 0, "units": [], "val": None},
        "model": ModelRecord(
            name="a:b", weights="w.pth", weights_sha256="ab" * 32, input_size=(3, 8, 8), num_classes=3, parameters=1234
        ),
        "reference": DataRecord(root="r", images=30, read=30, classes=3),
        "evaluation": DataRecord(root="e", images=301, read=300, classes=3),
        "shared_images": 0,
        "rate": 0.3,
        "removed": 12,
        "units": 40,
        "before": Hits(correct=270, total=300),
        "after": Hits(correct=243, total=300),
        "curves": (curve("least", None, 0.1), curve("most", None, 9), curve("random", 0, 1), curve("random", 1, 2)),
        "layers": (
            LayerRecord(name="first", kind="filter", count=10, removed=0),
            LayerRecord(name="second", kind="head", count=30, removed=12),
        ),
        "classes": (
            ClassRecord(label=0, name="cat", before=90, after=70, total=100),
            ClassRecord(label=1, name="<script>alert(1)</script>", before=90, after=93, total=100),
            ClassRecord(label=2, name="dog", before=90, after=90, total=100),
        ),
        "heatmaps": (HeatMapRecord(name="cat", before=("cat", 0.9), after=("dog", 0.6), similarity=0.75),),
        "skipped": (SkippedRecord(path="e/cat/broken.jpg", reason="the file is empty"),),
        "notes": ("Something to know.",),
        "seconds": {"score": 1.5},
        "environment": {"python": "3.11"},
    }
    return Results(**(values | changes))


def heat_maps(found: Results, size: int = 8) -> HeatMaps:
    count = len(found.heatmaps)
    images = torch.arange(count * 3 * size * size).reshape(count, 3, size, size).to(torch.uint8)
    ramp = torch.linspace(-1, 1, size * size).reshape(1, size, size).repeat(count, 1, 1).half()
    return HeatMaps(images, ramp, -ramp, found.heatmaps)


def slimmed(**changes) -> Results:
    """The same run, with a smaller network."""
    timed = [
        LatencyRecord(
            batch=batch, rounds=15, faster=faster, before=Spread(median=0.012, low=0.0118, high=0.0125),
            after=Spread(median=0.012 / ratio, low=0.009, high=0.0121),
            speed_up=Spread(median=ratio, low=ratio - 0.03, high=ratio + 0.02),
            work=WorkRecord(counted=(0.006, 0.005), other=(0.004, 0.0039)),
        )
        for batch, ratio, faster in ((1, 1.01, 8), (32, 1.6, 15))
    ]  # fmt: skip
    values = {
        "layers": (
            LayerRecord(name="first", kind="filter", count=10, removed=0, cut=0),
            LayerRecord(name="second", kind="head", count=30, removed=12, cut=9),
        ),
        "paired": PairedRecord(both=237, lost=33, gained=6, neither=24),
        "slimmed": SlimmedRecord(cut=9, zeros=3, difference=2.5e-7, compared=8, masked=Hits(correct=243, total=300)),
        "costs": CostsRecord(
            parameters=(1_500_000, 900_000), flops=(3_400_000_000, 2_000_000_000), bytes=(6_000_800, 3_600_800),
            latency=tuple(timed), device="cpu", threads=2, precision="float32",
        ),
        "agreement": tuple(
            AgreementRecord(
                measure=name, values=(mean - 0.1, mean, mean + 0.1), mean=mean, interval=(mean - 0.06, mean + 0.06)
            )
            for name, mean in (("cosine", 0.8), ("overlap", 0.6), ("rank", 0.7))
        ),
    }  # fmt: skip
    return results(**(values | changes))

"""What a run found: the content of ``results.json``, which a report is made from.

The file is versioned: a reader refuses a version it does not know instead of guessing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .errors import OutputError, PxpError
from .files import atomic_write
from .records import AgreementRecord, CostsRecord, Hits, LayerRecord, PairedRecord, Record, SlimmedRecord

VERSION = 1


class ModelRecord(Record):
    """The network: `parameters` is their number, `weights` where they came from."""

    name: str
    weights: str
    weights_sha256: str | None
    input_size: tuple[int, int, int]
    num_classes: int
    parameters: int


class DataRecord(Record):
    """A set of images: `images` chosen in `classes` classes, `read` of them usable."""

    root: str
    images: int
    read: int
    classes: int


class CurveRecord(Record):
    """Accuracy at each rate of units removed, in one `order`; `a_pr` and `top_pr` summarise it."""

    order: Literal["least", "most", "random"]
    seed: int | None
    rates: tuple[float, ...]
    accuracies: tuple[float, ...]
    removed: tuple[int, ...]
    a_pr: float
    top_pr: float


class ClassRecord(Record):
    """One class before and after the cut: images classified right, of `total`."""

    label: int
    name: str
    before: int
    after: int
    total: int

    @property
    def accuracy_before(self) -> float:
        return self.before / self.total if self.total else 0.0

    @property
    def accuracy_after(self) -> float:
        return self.after / self.total if self.total else 0.0


class TaskRecord(Record):
    """The classes, of the whole network's, that it was restricted to; see :class:`pxp_fast.Task`."""

    classes: tuple[int, ...]
    mode: Literal["slice", "zero"]


class SkippedRecord(Record):
    """A file that could not be read."""

    path: str
    reason: str


class HeatMapRecord(Record):
    """One image's explanation; the maps lie in ``heatmaps.safetensors`` in the same order.

    `before` and `after` are (predicted class, its probability); `similarity` is the cosine between the two maps.
    """

    name: str
    before: tuple[str, float]
    after: tuple[str, float]
    similarity: float


class Results(Record):
    """Everything a run found, and what is needed to run it again.

    `after` is of the slimmed network where there is one, else of the masked one.
    """

    format: Literal["pxp_fast results"] = "pxp_fast results"
    version: Literal[1] = VERSION
    created: str
    command: str
    config: dict[str, Any]
    model: ModelRecord
    reference: DataRecord
    evaluation: DataRecord
    shared_images: int
    rate: float
    removed: int
    units: int
    before: Hits
    after: Hits
    curves: tuple[CurveRecord, ...]
    layers: tuple[LayerRecord, ...]
    classes: tuple[ClassRecord, ...]
    heatmaps: tuple[HeatMapRecord, ...]
    skipped: tuple[SkippedRecord, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    environment: dict[str, str]
    task: TaskRecord | None = None
    until_stable: dict[str, Any] | None = None
    paired: PairedRecord | None = None
    slimmed: SlimmedRecord | None = None
    costs: CostsRecord | None = None
    agreement: tuple[AgreementRecord, ...] = ()

    def curve(self, order: str) -> CurveRecord | None:
        """The first curve of an order, None without one."""
        return next((curve for curve in self.curves if curve.order == order), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the results as JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read results. Raises OutputError when the file is missing, damaged or of another version."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise OutputError(
                f"cannot read {path}: {error.strerror}; give the folder that `pxp-fast run` wrote"
            ) from error
        except ValueError as error:
            raise OutputError(f"{path} is not JSON ({error}); it is damaged: run again") from error
        found = content.get("version") if isinstance(content, dict) else None
        if not isinstance(content, dict) or content.get("format") != "pxp_fast results" or found != VERSION:
            raise OutputError(
                f"{path} is not a pxp_fast results file of version {VERSION} (version {found}); make it with this "
                "version of the package"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise PxpError(f"{path} is damaged: {where}: {first['msg']}; run again") from error

"""Scores: how relevant each unit of a network is over a reference set. Made once; everything after works from them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import ops
from .criteria import Relevance
from .errors import DataError, PxpError, ScoresError
from .files import atomic_write
from .lrp import Composite
from .units import UnitGroup
from .version import __version__

Track = Callable[[Iterable, str, "int | None"], Iterator]
ABSOLUTES = ("pxp", "token", "sample")


class ScoresHeader(pydantic.BaseModel, extra="forbid", frozen=True):
    """What the scores are of; stored as JSON in the file's metadata."""

    format: Literal["pxp_fast.scores"] = "pxp_fast.scores"
    version: Literal[1] = 1
    model: str
    criterion: str = "lrp"
    composite: dict
    initial: str = "one"
    samples: int = pydantic.Field(ge=0)
    dtype: str
    device: str
    data: dict | None = None
    versions: dict[str, str]
    units: tuple[UnitGroup, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accumulated relevance of every unit.

    Attributes
    ----------
    header
        Model, composite, data, number of samples, versions, and the unit groups.
    totals
        ``[4, U]`` float64 on the CPU, sums over samples of each unit's: signed relevance, absolute value of the
        per-sample sum, sum of absolute values over positions (tokens, queries), squared per-sample sum.
        Rows `ops.SIGNED`, `ops.SAMPLE_ABSOLUTE`, `ops.TOKEN_ABSOLUTE`, `ops.SQUARED`.
    """

    header: ScoresHeader
    totals: Tensor

    @property
    def units(self) -> tuple[UnitGroup, ...]:
        return self.header.units

    @property
    def samples(self) -> int:
        return self.header.samples

    def values(self, *, magnitude: bool = True, absolute: str = "pxp") -> Tensor:
        """Mean relevance per sample of every unit, ``[U]`` float64.

        Parameters
        ----------
        magnitude
            Take absolute values before the sum over samples (PXP's better setting); else sum signed relevance.
        absolute
            Where: of each ``"sample"``'s sum, at each ``"token"`` (position, query), or as the ``"pxp"`` code does:
            per sample for filters, per token for neurons and heads (Hatefi et al., 2024, eq. 6).
        """
        if absolute not in ABSOLUTES:
            raise PxpError(f"absolute is {absolute!r}; choose one of {', '.join(ABSOLUTES)}")
        if not magnitude:
            return self.totals[ops.SIGNED] / self.samples
        rows = {"sample": ops.SAMPLE_ABSOLUTE, "token": ops.TOKEN_ABSOLUTE}
        by_kind = {"filter": ops.SAMPLE_ABSOLUTE, "neuron": ops.TOKEN_ABSOLUTE, "head": ops.TOKEN_ABSOLUTE}
        parts = torch.split(self.totals, [group.count for group in self.units], dim=1)
        chosen = [part[rows.get(absolute, by_kind[group.kind])] for group, part in zip(self.units, parts, strict=True)]
        return torch.cat(chosen) / self.samples

    def of(self, name: str, **options) -> Tensor:
        """The values of one group, ``[count]``; options as for :meth:`values`."""
        parts = torch.split(self.values(**options), [group.count for group in self.units])
        for group, part in zip(self.units, parts, strict=True):
            if group.name == name:
                return part
        raise PxpError(f"no scores for {name!r}; scored are {', '.join(g.name for g in self.units)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the header in its metadata; replaced atomically."""
        metadata = {"pxp_fast": self.header.model_dump_json()}
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save({"totals": self.totals.contiguous()}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model_name: str | None = None) -> Scores:
        """Read a scores file.

        Raises
        ------
        ScoresError
            The file cannot be read, is damaged, or holds scores of a model other than `model_name`.
        """
        if not Path(path).is_file():
            raise ScoresError(f"there is no scores file {path}; make one with pxp-fast score")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = ScoresHeader.model_validate_json((file.metadata() or {})["pxp_fast"])
                totals = file.get_tensor("totals")
        except (safetensors.SafetensorError, KeyError, pydantic.ValidationError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ScoresError(f"{path} is no intact scores file ({reason}); score again") from error
        count = sum(group.count for group in header.units)
        if totals.shape != (4, count) or totals.dtype != torch.float64:
            raise ScoresError(
                f"{path} holds totals {totals.dtype} {list(totals.shape)}; its header calls for float64 [4, {count}]"
            )
        scores = cls(header, totals)
        scores.check_model(model_name)
        return scores

    def check_model(self, model_name: str | None) -> None:
        """Raise ScoresError unless these are scores of the model named; None accepts any."""
        if model_name is not None and model_name != self.header.model:
            raise ScoresError(
                f"these scores are of model {self.header.model!r}, not of {model_name!r}; score {model_name!r} itself"
            )


def model_name_of(model: nn.Module) -> str:
    """The architecture's name where the model knows it (timm), else its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    return {"pxp_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}


def score(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    composite: str | Composite = "epsilon",
    units: Iterable[str] | None = None,
    initial: str = "one",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    model_name: str | None = None,
    data: dict | None = None,
    progress: Track | None = None,
) -> Scores:
    """Score every unit of a classifier by its relevance over a reference set, in one pass.

    Sums stay on the device in float64 and come to the host once, at the end.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; afterwards exactly as before.
    loader
        Yields ``(images [N, C, H, W], labels [N] int64)``; batches may differ in size. Relevance enters at the label.
    composite
        The rules; a name or a :class:`pxp_fast.lrp.Composite`.
    units
        Kinds to score, of ``"filter"``, ``"neuron"``, ``"head"``; None: all that the model has.
    initial
        Relevance at the label's logit: ``"one"``, or ``"logit"`` for its value.
    device, dtype
        Of the computation; default: the model's. bfloat16 is the fast choice; sums stay in float32.
    exact
        In float32, take slower kernels whose rounding errors are two to six times smaller; see
        :class:`pxp_fast.lrp.Program`.
    model_name
        Written into the scores, and checked when they are loaded; default: what the model says of itself.
    data
        A JSON-able description of the reference set, for the record.
    progress
        ``track(iterable, description, total)``, yielding the iterable's items; None: silent.

    Raises
    ------
    CaptureError, ModelError, DataError, NumericalError
        See the messages.
    """
    total = len(loader) if hasattr(loader, "__len__") else None
    criterion: Relevance | None = None
    totals = torch.empty(0)
    samples = 0
    batches = progress(loader, "scoring", total) if progress is not None else loader
    for images, labels in batches:
        if criterion is None:
            kinds = tuple(units) if units is not None else None
            options = {"composite": composite, "dtype": dtype, "device": device, "exact": exact}
            criterion = Relevance(model, images, kinds=kinds, **options)
            count = sum(group.count for group in criterion.units)
            totals = torch.zeros(4, count, dtype=torch.float64, device=criterion.program.device)
        table = criterion.run(images, labels, initial)
        if table.device.type == "cpu":
            criterion.check_finite(table)
        ops.accumulate_(totals, table)
        samples += len(images)
    if criterion is None or samples == 0:
        raise DataError("the reference set is empty, so there is nothing to score; check the folder and classes")
    criterion.check_finite(totals)
    header = ScoresHeader(
        model=model_name or model_name_of(model),
        composite=dataclasses.asdict(criterion.program.composite),
        initial=initial,
        samples=samples,
        dtype=str(criterion.program.dtype).removeprefix("torch."),
        device=criterion.program.device.type,
        data=json.loads(json.dumps(data)),
        versions=versions(),
        units=criterion.units,
    )
    return Scores(header, totals.cpu())

"""Scores: how relevant each unit of a network is over a reference set. Made once; everything after works from them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import ops
from .errors import PxpError, ScoresError
from .files import atomic_write
from .scores_classes import contrast, for_classes
from .scores_samples import for_samples, unfit
from .units import UnitGroup

ABSOLUTES = ("pxp", "token", "sample")
_OPTIONAL = ("class_totals", "class_samples", "sample_table", "sample_labels")


class ScoresHeader(pydantic.BaseModel, extra="forbid", frozen=True):
    """What the scores are of; stored as JSON in the file's metadata.

    `samples` is 0 where the criterion needs no images, and `composite` is empty where it is not relevance.
    """

    format: Literal["pxp_fast.scores"] = "pxp_fast.scores"
    version: Literal[1] = 1
    model: str
    criterion: str = "lrp"
    criterion_options: dict = {}
    composite: dict
    initial: str = "one"
    samples: int = pydantic.Field(ge=0)
    dtype: str
    device: str
    data: dict | None = None
    versions: dict[str, str]
    units: tuple[UnitGroup, ...]
    until_stable: dict | None = None


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
    class_totals
        ``[classes, 4, U]`` float64 on the CPU, the same over each class's samples, or None if they were not asked for.
        Their sum over the classes is `totals` but for rounding: samples were added in another order.
    class_samples
        ``[classes]`` int64, how many samples each class had; given where `class_totals` is.
    sample_table
        ``[N, 2, U]`` float32 (float64 if that was computed in) on the CPU, or None if it was not asked for: of every
        sample, in the order in which they scored, each unit's signed relevance and its sum of absolute values.
    sample_labels
        ``[N]`` int64, the label of every sample; given where `sample_table` is.
    """

    header: ScoresHeader
    totals: Tensor
    class_totals: Tensor | None = None
    class_samples: Tensor | None = None
    sample_table: Tensor | None = None
    sample_labels: Tensor | None = None

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
            return self.totals[ops.SIGNED] / max(self.samples, 1)
        rows = {"sample": ops.SAMPLE_ABSOLUTE, "token": ops.TOKEN_ABSOLUTE}
        by_kind = {"filter": ops.SAMPLE_ABSOLUTE, "neuron": ops.TOKEN_ABSOLUTE, "head": ops.TOKEN_ABSOLUTE}
        parts = torch.split(self.totals, [group.count for group in self.units], dim=1)
        chosen = [part[rows.get(absolute, by_kind[group.kind])] for group, part in zip(self.units, parts, strict=True)]
        return torch.cat(chosen) / max(self.samples, 1)

    def of(self, name: str, **options) -> Tensor:
        """The values of one group, ``[count]``; options as for :meth:`values`."""
        parts = torch.split(self.values(**options), [group.count for group in self.units])
        for group, part in zip(self.units, parts, strict=True):
            if group.name == name:
                return part
        raise PxpError(f"no scores for {name!r}; scored are {', '.join(g.name for g in self.units)}")

    def for_classes(self, keep: Iterable[int]) -> Scores:
        """The scores over the samples of some classes alone, as if the others had not been in the reference set.

        They equal what scoring these samples gives, but for rounding; those of a combination are made of parts that
        are normalised over all samples, so combine the scores of the classes to have them normalised over these. They
        carry no totals per class, but the rows of the `sample_table`, if there is one. The header's `data` gains an
        entry ``for_classes``.

        Parameters
        ----------
        keep
            Labels. Where the header's ``data["task"]`` says that the network was sliced to a task, those of the whole
            network, as there.

        Raises
        ------
        ScoresError
            Neither classes nor samples are told apart, or there are no samples of some of these classes.
        """
        return for_classes(self, keep)

    def contrast(self, keep: Iterable[int] | None = None, forget: Iterable[int] | None = None) -> Scores:
        """What units say about some classes less what they say about others: scores to forget the others by.

        The mean score over the samples of `keep`, minus that over the samples of `forget`, for each of the numbers that
        a plan may rank by. Ranked least first, units go that matter to what is to be forgotten and not to what is to be
        kept; values may be negative, whatever they are absolute values of.

        Parameters
        ----------
        keep
            Labels as in :meth:`for_classes`, which is what `keep` alone gives; None: all that have images, except
            `forget`.
        forget
            Labels; None: none.

        Returns
        -------
        Scores
            As if every sample had been counted ``n / n_keep`` or ``-n / n_forget`` times, n being their sum, the number
            of samples. No totals per class and no table. The header's `data` gains an entry ``contrast``.

        Raises
        ------
        ScoresError
            As for :meth:`for_classes`; or a class is both to be kept and to be forgotten, or nothing is said to be
            either, or the criterion needs no images and so tells no classes apart.

        References
        ----------
        Hatefi et al., Attribution-guided Pruning for Compression, Circuit Discovery, and Targeted Correction in LLMs,
        2025, arXiv 2506.13727: relevance of the general less that of the undesired behaviour.
        """
        return contrast(self, keep, forget)

    def for_samples(self, indices: Iterable[int]) -> Scores:
        """The scores over some of the samples alone, as if they had been the whole reference set.

        Totals are those that scoring these samples in this order gives, bit for bit where they come in the same
        batches, and so are the totals per class if there are any here. The header's `data` gains an entry
        ``for_samples``, and its ``paths``, where it has one for every sample, become those of these.

        Parameters
        ----------
        indices
            Positions in the order in which samples scored, ``0 ... N - 1``; one that comes twice counts twice.

        Raises
        ------
        ScoresError
            There is no `sample_table`, or a position is not in it.
        """
        return for_samples(self, indices)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the header in its metadata; replaced atomically."""
        metadata = {"pxp_fast": self.header.model_dump_json()}
        tensors = {name: getattr(self, name) for name in ("totals", *_OPTIONAL)}
        present = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        with atomic_write(path) as temporary:
            try:
                safetensors.torch.save_file(present, temporary, metadata)  # straight from memory: tables are large
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error

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
                present = [name for name in _OPTIONAL if name in file.keys()]  # noqa: SIM118
                tensors = {name: file.get_tensor(name) for name in ("totals", *present)}
        except (
            safetensors.SafetensorError,
            KeyError,
            pydantic.ValidationError,
            OSError,
            ValueError,
            TypeError,
        ) as error:
            reason = str(error).strip().splitlines()[0]
            raise ScoresError(f"{path} is no intact scores file ({reason}); score again") from error
        scores = cls(header, **tensors)
        scores._check_tensors(path)
        scores.check_model(model_name)
        return scores

    def _check_tensors(self, path: str | os.PathLike[str]) -> None:
        """Raise ScoresError unless the tensors are as the header and each other call for."""
        count = sum(group.count for group in self.units)
        if self.totals.shape != (4, count) or self.totals.dtype != torch.float64:
            raise ScoresError(
                f"{path} holds totals {self.totals.dtype} {list(self.totals.shape)}; its header calls for float64 "
                f"[4, {count}]"
            )
        if (wrong := unfit(self)) is not None:
            raise ScoresError(f"{path} holds {wrong}; score again")
        if self.class_totals is None and self.class_samples is None:
            return
        held = self.class_totals, self.class_samples
        found = " and ".join("none" if t is None else f"{t.dtype} {list(t.shape)}" for t in held)
        if (
            None in held
            or self.class_samples.dim() != 1
            or self.class_samples.dtype != torch.int64
            or self.class_totals.shape != (len(self.class_samples), 4, count)
            or self.class_totals.dtype != torch.float64
            or int(self.class_samples.sum()) != self.samples
            or bool((self.class_samples < 0).any())
        ):
            raise ScoresError(
                f"{path} holds class_totals and class_samples {found}; its header calls for float64 "
                f"[classes, 4, {count}] and int64 [classes] that add up to {self.samples} samples; score again"
            )

    def check_model(self, model_name: str | None) -> None:
        """Raise ScoresError unless these are scores of the model named; None accepts any."""
        if model_name is not None and model_name != self.header.model:
            raise ScoresError(
                f"these scores are of model {self.header.model!r}, not of {model_name!r}; score {model_name!r} itself"
            )

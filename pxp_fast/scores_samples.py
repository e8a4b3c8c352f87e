"""Scores of single images: the tables kept of every batch, and from them the scores of any part of the images."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .errors import ScoresError

if TYPE_CHECKING:
    from .scores import Scores

_AT_ONCE = 256
_ON_THE_WAY = 2


class SampleTables:
    """The tables of batches on the host, one below the other.

    Parameters
    ----------
    units
        Of the tables.
    dtype
        Of the tables: float32, or float64 where that is computed in.
    expected
        How many images to make room for; more than that are taken at the price of copying. Room takes memory only when
        it is filled.
    """

    def __init__(self, units: int, dtype: torch.dtype, expected: int | None = None) -> None:
        self.samples = 0
        self.dtype = dtype
        with torch.inference_mode(False):
            self._rows = torch.empty(expected or _AT_ONCE, 2, units, dtype=dtype)
        self._arriving: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()

    def add(self, table: Tensor) -> None:
        """Take the table ``[2, n, U]`` of a batch, which may change after whatever its stream does next.

        On a GPU it is copied behind the work that made it; the host waits only for copies that are two batches old.
        """
        rows = self._place(table.shape[1])
        table = table.transpose(0, 1)
        if table.device.type != "cuda":
            rows.copy_(table)
            return
        pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        pinned.copy_(table.to(rows.dtype).contiguous(), non_blocking=True)
        self._arriving.append((rows, pinned, torch.cuda.current_stream(table.device).record_event()))
        self._settle(_ON_THE_WAY)

    def finish(self) -> Tensor:
        """``[N, 2, U]``: signed and absolute relevance of every image, in the order in which they came."""
        self._settle(0)
        return self._rows[: self.samples]

    def _place(self, count: int) -> Tensor:
        """Rows for `count` more images."""
        wanted = self.samples + count
        if wanted > len(self._rows):
            self._settle(0)
            larger = self._rows.new_empty(max(wanted, 2 * len(self._rows)), *self._rows.shape[1:])
            larger[: self.samples] = self._rows[: self.samples]
            self._rows = larger
        self.samples = wanted
        return self._rows[wanted - count : wanted]

    def _settle(self, ahead: int) -> None:
        while len(self._arriving) > ahead:
            rows, pinned, arrived = self._arriving.popleft()
            arrived.synchronize()
            rows.copy_(pinned)


def add_up(totals: Tensor, table: Tensor, index: Tensor, labels: Tensor | None = None) -> Tensor:
    """Add the samples of ``table [N, 2, U]`` at `index` to totals as :func:`pxp_fast.ops.accumulate_` takes them."""
    for part in index.split(_AT_ONCE):
        ops.accumulate_(totals, table[part].transpose(0, 1), None if labels is None else labels[part])
    return totals


def for_samples(scores: Scores, indices: Iterable[int]) -> Scores:
    """See :meth:`pxp_fast.Scores.for_samples`."""
    if scores.sample_table is None or scores.sample_labels is None:
        raise ScoresError(
            "these scores do not tell images apart; score again with per_sample=True (pxp-fast score --per-sample)"
        )
    chosen = _checked(indices, len(scores.sample_labels))
    index = torch.tensor(chosen)
    labels = scores.sample_labels[index]
    by_class: dict[str, Tensor] = {}
    if scores.class_totals is not None:
        totals = torch.zeros_like(scores.class_totals)
        by_class["class_totals"] = add_up(totals, scores.sample_table, index, scores.sample_labels)
        by_class["class_samples"] = torch.bincount(labels, minlength=len(scores.class_totals))
    data = {**(scores.header.data or {}), "for_samples": chosen}
    if len(paths := data.get("paths") or ()) == len(scores.sample_labels):
        data["paths"] = [paths[i] for i in chosen]
    return type(scores)(
        scores.header.model_copy(update={"samples": len(chosen), "data": data}),
        add_up(torch.zeros_like(scores.totals), scores.sample_table, index),
        **by_class,
        sample_table=scores.sample_table[index],
        sample_labels=labels,
    )


def unfit(scores: Scores) -> str | None:
    """What is wrong with the tensors kept per image, beside what the header calls for; None: nothing."""
    table, labels = scores.sample_table, scores.sample_labels
    if table is None and labels is None:
        return None
    units = sum(group.count for group in scores.units)
    if (
        table is not None
        and labels is not None
        and table.shape == (scores.samples, 2, units)
        and table.dtype in (torch.float32, torch.float64)
        and labels.shape == (scores.samples,)
        and labels.dtype == torch.int64
    ):
        return None
    found = " and ".join("none" if t is None else f"{t.dtype} {list(t.shape)}" for t in (table, labels))
    return (
        f"sample_table and sample_labels {found}; its header calls for float32 or float64 "
        f"[{scores.samples}, 2, {units}] and int64 [{scores.samples}]"
    )


def _checked(indices: Iterable[int], samples: int) -> list[int]:
    given = indices.tolist() if isinstance(indices, Tensor) else indices
    try:
        chosen = [operator.index(position) for position in given]
    except TypeError as error:
        raise ScoresError(f"positions of images are {given!r}; pass whole numbers, such as [0, 3]") from error
    if not chosen or min(chosen) < 0 or max(chosen) >= samples or any(isinstance(position, bool) for position in given):
        raise ScoresError(
            f"scores are asked for of images {chosen[:8]}{' ...' if len(chosen) > 8 else ''}; choose one or more "
            f"positions of the {samples} images that scored, 0 ... {samples - 1}"
        )
    return chosen

"""Progress of long loops: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")
Track = Callable[[Iterable[Any], str, "int | None"], Iterator[Any]]

_SECONDS = 10.0
_FRACTION = 0.1


def tracker(stream: TextIO | None = None) -> Track:
    """A ``track(iterable, description, total)`` that reports on `stream` (standard error by default)."""
    stream = stream or sys.stderr
    return _Bars(stream) if stream.isatty() else _Lines(stream)


def silent(iterable: Iterable[Item], description: str = "", total: int | None = None) -> Iterator[Item]:
    """A ``track`` that says nothing."""
    yield from iterable


class _Bars:
    """One rich progress bar per loop; it stays on the screen with its time once the loop has ended."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._busy = False

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        if self._busy:  # a terminal holds one live display: a loop inside another's step runs without a bar of its own
            yield from iterable
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._busy = True
        try:
            with Progress(*columns, console=self._console) as progress:
                yield from progress.track(iterable, description=description, total=_length(iterable, total))
        finally:
            self._busy = False


class _Lines:
    """A line every ten seconds or tenth of the way, whichever is rarer, and one at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._busy = False

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        if self._busy:
            yield from iterable
            return
        self._busy = True
        try:
            yield from self._report(iterable, description, _length(iterable, total))
        finally:
            self._busy = False

    def _report(self, iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        start = said = time.monotonic()
        said_at = done = 0
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            far_enough = total is None or done - said_at >= _FRACTION * total
            if now - said >= _SECONDS and far_enough and done != total:
                left = f", about {(now - start) * (total - done) / done:.0f} s left" if total else ""
                self._say(f"{description}: {done}{f'/{total}' if total else ''} after {now - start:.0f} s{left}")
                said, said_at = now, done
        self._say(f"{description}: {done} done in {time.monotonic() - start:.1f} s")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _length(iterable: Iterable[Any], total: int | None) -> int | None:
    if total is None and hasattr(iterable, "__len__"):
        return len(iterable)  # type: ignore[arg-type]
    return total

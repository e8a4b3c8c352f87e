"""Files that several processes share and any of which may be killed: locks, signs of life, and the study's journal.

Every lock is one that the system itself lets go of when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import OutputError

if TYPE_CHECKING:
    import optuna

_TAIL = 2**16


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which stays behind; waits while another process holds it."""
    stream = _open(path)
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def conclusion(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While no other process writes what a search has led to: of several the last to end knows most."""
    return locked(folder / ".conclusion.lock")


class Worker:
    """A sign of life: a lock file that this process holds for as long as it lives.

    Attributes
    ----------
    name
        By which others ask :func:`alive`.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._path = folder / self.name
        self._stream = _open(self._path)
        fcntl.flock(self._stream, fcntl.LOCK_EX)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self._path.unlink(missing_ok=True)
        self._stream.close()


def alive(folder: Path, name: str | None) -> bool:
    """Whether the worker of this name is still at it. Ask under a lock: two that ask at once take each other for it."""
    path = folder / (name or "")
    if not name or not path.is_file():
        return False
    with open(path, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    path.unlink(missing_ok=True)
    return False


def journal(path: Path) -> optuna.storages.JournalStorage:
    """A study's storage: lines of JSON that processes append in turn."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with locked(_beside(path)):
        mend(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}); remove it: what it led to is still in the cache") from error


def mend(path: Path) -> None:
    """Drop the last line of a journal if its writer, or the power, was stopped in the middle of it."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as stream:
        start, line = _last_line(stream)
        if line and not (line.endswith(b"\n") and _is_object(line)):
            stream.truncate(start)


def _last_line(stream: IO[bytes]) -> tuple[int, bytes]:
    """Where the last line starts, and what it holds."""
    size, length = stream.seek(0, os.SEEK_END), _TAIL
    while True:
        begin = max(0, size - length)
        stream.seek(begin)
        tail = stream.read()
        before = tail.rfind(b"\n", 0, -1)
        if before >= 0 or begin == 0:
            return begin + before + 1, tail[before + 1 :]
        length *= 2


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class _JournalLock:
    """What Optuna asks of a journal's lock; its own would outlive a killed process."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._stack = contextlib.ExitStack()

    def acquire(self) -> bool:
        self._stack.enter_context(locked(_beside(self._journal)))
        mend(self._journal)  # a peer may have been killed since this process opened it
        return True

    def release(self) -> None:
        self._stack.close()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _open(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; give another folder with --out") from error

"""Atomic replacement of whole folders: a reader sees the old folder or the new one, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError
from .files import umask

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], replaceable: frozenset[str]) -> Iterator[Path]:
    """Give a temporary folder beside `path`; put it in the place of `path` when the block ends well, else delete it.

    Parameters
    ----------
    path
        What is to be there: nothing, an empty folder, or one that holds nothing but what is `replaceable`.
    replaceable
        Names of files.

    Raises
    ------
    OutputError
        The folder cannot be written, or holds something else, which would be lost.
    """
    target = Path(path).resolve()
    temporary: Path | None = None
    try:
        _refuse_others(target, replaceable)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        hidden = umask()
        for file in temporary.iterdir():
            os.chmod(file, 0o666 & ~hidden)
            _synchronise(file)
        os.chmod(temporary, 0o777 & ~hidden)
        _synchronise(temporary)
        _refuse_others(target, replaceable)
        _replace(temporary, target)
        _synchronise(target.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose another place or free space there"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def previous(target: Path) -> Path:
    """Where the old folder lies for a moment on file systems that cannot exchange two folders."""
    return target.with_name(f".{target.name}.previous")


def _refuse_others(target: Path, replaceable: frozenset[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"cannot write {target}: it is a file; give a folder")
    if others := sorted(file.name for file in target.iterdir() if file.name not in replaceable):
        raise OutputError(
            f"cannot replace {target}: it holds other things ({', '.join(others[:5])}{', ...' * (len(others) > 5)}), "
            "which would be lost; choose another folder"
        )


def _replace(temporary: Path, target: Path) -> None:
    """Let `temporary` be `target`; what was there is in the place of `temporary` afterwards."""
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        before = previous(target)
        shutil.rmtree(before, ignore_errors=True)
        os.rename(target, before)
        os.rename(temporary, target)
        shutil.rmtree(before, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, where the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Atomic replacement of result files: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it over `path` when the block ends well, delete it when it does not.

    The parent directory is created. The data reach the disk before the rename, so a crash leaves one whole file.

    Raises
    ------
    OutputError
        The directory or file cannot be written (no permission, no space, `path` is a directory ...).
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OutputError(f"cannot write {target}: it is a directory; give a file name")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose another place or free space there"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def umask() -> int:
    """The process's umask, which only setting it reveals: `mkstemp` makes files that nobody else can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

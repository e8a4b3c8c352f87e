"""Take files out of an archive by hand: nothing lands outside the folder, nothing is a link, nothing is executed."""

from __future__ import annotations

import io
import lzma
import pickle
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from pxp_fast.errors import PxpError

SIZE_LIMIT = 2 << 30


class AssetError(PxpError):
    """An asset cannot be fetched, or is not what it should be; the message says what to do."""


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Write the files of a tar, zip, wheel or Debian package whose names are `wanted` under `folder`.

    Names are relative, with forward slashes. An archive that holds a link, a device, a name that leads out of the
    folder, a name twice, or more than 2 GiB is refused as a whole.

    Returns
    -------
    The paths written, in the archive's order.
    """
    written: list[Path] = []
    seen: set[PurePosixPath] = set()
    total = 0
    try:
        for name, size, stream in _members(archive):
            relative = _safe(name, archive)
            total += size
            if relative in seen:
                raise AssetError(f"{archive.name} holds {name!r} twice; it is not the archive it should be")
            if total > SIZE_LIMIT:
                raise AssetError(f"{archive.name} unpacks to more than {SIZE_LIMIT:,} bytes; it is refused")
            seen.add(relative)
            if wanted(str(relative)):
                target = folder.joinpath(*relative.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as output:
                    shutil.copyfileobj(stream, output)
                written.append(target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise AssetError(f"{archive.name} is damaged ({error}); delete {archive} and fetch it again") from error
    if not written:
        raise AssetError(f"{archive.name} holds none of the files that were looked for among its {len(seen)}")
    return written


def _safe(name: str, archive: Path) -> PurePosixPath:
    relative = PurePosixPath(name)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name:
        raise AssetError(f"{archive.name} holds {name!r}, which leads out of its folder; the archive is refused")
    return relative


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size in bytes and content of every plain file, in order; folders are left out."""
    if archive.suffix in (".whl", ".zip"):
        yield from _zip_members(archive)
    elif archive.suffix == ".deb":
        name, data = _debian_data(archive)
        yield from _tar_members(archive, io.BytesIO(data), name)
    else:
        with open(archive, "rb") as stream:
            yield from _tar_members(archive, stream, archive.name)


def _tar_members(archive: Path, stream: IO[bytes], name: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(fileobj=stream, name=name) as tar:
        for member in tar:
            if member.isdir():
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise AssetError(f"{archive.name} holds {member.name!r}, a link or device; the archive is refused")
            yield member.name, member.size, content


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise AssetError(f"{archive.name} holds {info.filename!r}, a link or device; the archive is refused")
            with file.open(info) as content:
                yield info.filename, info.file_size, content


def _debian_data(archive: Path) -> tuple[str, bytes]:
    """Name and content of data.tar.* in a Debian package, which is an `ar` archive of 60-byte headers."""
    with open(archive, "rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise AssetError(f"{archive.name} is not a Debian package; delete {archive} and fetch it again")
        while len(header := stream.read(60)) == 60:
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
            if not size.isdigit():
                break
            if name.startswith("data.tar"):
                return name, stream.read(int(size))
            stream.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise AssetError(f"{archive.name} holds no data.tar; delete {archive} and fetch it again")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names that a pickled NumPy array needs, and no other, so that no code can be named."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _empty_array
        raise AssetError(f"the pickle asks for {module}.{name}; only plain NumPy arrays are read, so it is refused")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """NumPy's `_reconstruct` for exactly ndarray: an empty array, whose state the pickle then sets."""
    if kind is not np.ndarray:
        raise AssetError(f"the pickle builds a {kind!r} instead of a NumPy array; it is refused")
    return np.empty((0,), np.int8)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a pickle of nested dictionaries of numeric arrays; keys are joined by "/".

    Anything else in the file (another class, a function, an array of objects) is refused before it can run.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with open(path, "rb") as stream:
            _flatten(_ArrayUnpickler(stream).load(), (), arrays)
    except (pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        if isinstance(error, AssetError):
            raise
        raise AssetError(f"{path.name} is no pickle of arrays: {type(error).__name__}: {error}") from error
    return arrays


def _flatten(value: Any, key: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        for name, inner in value.items():
            _flatten(inner, (*key, name), arrays)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays["/".join(key)] = value
    else:
        raise AssetError(f"{'/'.join(key) or 'the pickle'} is a {type(value).__name__}, not a numeric array")

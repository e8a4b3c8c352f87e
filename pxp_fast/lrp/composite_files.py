"""Small files of settings, in YAML or JSON."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from types import ModuleType

from ..errors import PxpError
from ..files import atomic_write

YAML_SUFFIXES = (".yaml", ".yml")
LARGEST = 1 << 16


def read(path: str | os.PathLike[str]) -> object:
    """The content of a YAML or JSON file, by its suffix.

    Raises
    ------
    PxpError
        The file cannot be read, holds more than 64 KiB, is malformed, or needs PyYAML, which is not installed.
    """
    path = Path(path)
    yaml = _yaml(path)
    try:
        with open(path, "rb") as stream:
            raw = stream.read(LARGEST + 1)
    except OSError as error:
        raise PxpError(f"cannot read {path}: {error.strerror or error}; give the file of a composite") from error
    if len(raw) > LARGEST:
        raise PxpError(f"{path} holds more than {LARGEST >> 10} KiB; the file of a composite has a few lines")
    malformed = (ValueError, RecursionError) if yaml is None else (ValueError, RecursionError, yaml.YAMLError)
    try:
        text = raw.decode("utf-8")
        return json.loads(text, object_pairs_hook=_each_once) if yaml is None else yaml.load(text, _loader(yaml))
    except malformed as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PxpError(f"{path} is not {'JSON' if yaml is None else 'YAML'}: {reason}") from error


def write(content: dict, path: str | os.PathLike[str]) -> None:
    """Write plain data as YAML or JSON, by the suffix of `path`; replaced atomically."""
    yaml = _yaml(Path(path))
    text = json.dumps(content, indent=1) + "\n" if yaml is None else yaml.safe_dump(content, sort_keys=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A mapping of JSON; ValueError where a key comes twice."""
    keys = [key for key, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"{twice!r} comes twice")
    return dict(pairs)


@functools.cache
def _loader(yaml: ModuleType) -> type:
    """PyYAML's safe loader, which takes the last of keys that come twice, made to refuse them."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            met = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in met:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} comes twice", key.start_mark)
                met.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _yaml(path: Path) -> ModuleType | None:
    """PyYAML where the file's name calls for it."""
    if path.suffix.lower() not in YAML_SUFFIXES:
        return None
    try:
        import yaml
    except ImportError as error:
        raise PxpError(f"{path} is YAML, which needs PyYAML: pip install pyyaml, or write JSON instead") from error
    return yaml

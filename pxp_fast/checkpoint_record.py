"""What a saved model's ``pxp.json`` says, and how it is read with nothing taken on trust."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pydantic
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .decode import Preprocess
from .environment import version
from .errors import CheckpointError
from .plan import Plan
from .results import Hits
from .slim import SlimRecord
from .slimming.rebuild import Changes
from .weights import fingerprint

RECORD, WEIGHTS = "pxp.json", "model.safetensors"
FORMAT, VERSION = "pxp_fast.checkpoint", 1
_PACKAGES = ("pxp_fast", "torch", "timm", "torchvision", "safetensors")


class WeightsFile(pydantic.BaseModel, extra="forbid", frozen=True):
    """The size in bytes and the sha256 of the file of tensors."""

    size: int
    sha256: str


class CheckpointRecord(pydantic.BaseModel, extra="forbid", frozen=True):
    """How a saved model is built again, and where it comes from.

    Attributes
    ----------
    architecture, arguments
        The constructor, as :func:`pxp_fast.models.load` knows it, and what it is called with.
    changes
        What tells the model from what the constructor builds.
    weights
        The file of tensors beside this one.
    preprocess
        How an image becomes the model's input.
    class_names
        Of the logits.
    source, source_sha256
        The weights before anything was removed: "pretrained", a path ..., and the sha256 of the file if there was one.
    plans
        What was removed, in order.
    slim
        What became of the last plan.
    accuracy
        As measured, by a name of the saver's choice.
    versions
        Of the packages that made it.
    """

    format: Literal["pxp_fast.checkpoint"] = FORMAT
    version: Literal[1] = VERSION
    architecture: str
    arguments: dict[str, Any] = {}
    changes: Changes
    weights: WeightsFile
    preprocess: Preprocess
    class_names: tuple[str, ...] | None = None
    source: str | None = None
    source_sha256: str | None = None
    plans: tuple[Plan, ...] = ()
    slim: SlimRecord | None = None
    accuracy: dict[str, Hits] = {}
    versions: dict[str, str]

    def save(self, path: Path) -> None:
        """Write JSON, with a digest of itself."""
        content = json.loads(self.model_dump_json())
        path.write_text(json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CheckpointRecord:
        """Read the record in a folder.

        Raises
        ------
        CheckpointError
            There is none, it is damaged or was changed, or a later version made it.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(_no_checkpoint(folder)) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); take another copy of the folder") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no record of a saved model; give a folder that pxp_fast.save wrote")
        found = content.get("version")
        if isinstance(found, int) and found > VERSION:
            raise CheckpointError(
                f"{folder} was saved in format {found} by pxp_fast {_version_of(content)}; this is "
                f"{version('pxp_fast')}, which reads formats up to {VERSION}: install a newer pxp_fast"
            )
        if content.pop("digest", None) != _digest(content):
            raise CheckpointError(
                f"{path} is damaged or was changed by hand: its digest is of something else; take another copy of the "
                "folder, or save the model again"
            )
        try:
            return cls.model_validate_json(json.dumps(content))
        except pydantic.ValidationError as error:
            reason = "; ".join(str(error).splitlines()[:3])
            raise CheckpointError(f"{path} is no intact record of a saved model ({reason}); save it again") from error


def versions() -> dict[str, str]:
    """Of the packages that a saved model depends on, as far as they are installed."""
    return {name: found for name in _PACKAGES if (found := version(name))}


def read_weights(path: Path, expected: WeightsFile) -> dict[str, Tensor]:
    """The tensors in a file, which must be the one expected.

    Raises
    ------
    CheckpointError
        It is not.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; take another copy of the folder")
    size = path.stat().st_size
    if size != expected.size:
        what = "truncated" if size < expected.size else "not the file that was saved"
        raise CheckpointError(
            f"{path} is {what}: {size} bytes, expected {expected.size}; take another copy of the folder"
        )
    if (found := fingerprint(path)) != expected.sha256:
        raise CheckpointError(
            f"{path} is damaged or of another model: its sha256 is {found[:9]}..., expected {expected.sha256[:9]}...; "
            "take another copy of the folder"
        )
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors: {error}") from error


def other_versions(record: CheckpointRecord) -> str:
    """A remark on the versions that a model was saved with, where other ones are here; else nothing."""
    here = versions()
    other = [f"{name} {made} (here {here.get(name, 'none')})" for name, made in record.versions.items()]
    differs = any(here.get(name) != made for name, made in record.versions.items())
    return f"; it was saved with {', '.join(other)}" if differs else ""


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version_of(content: dict[str, Any]) -> str:
    made_by = content.get("versions")
    return str(made_by.get("pxp_fast", "?")) if isinstance(made_by, dict) else "?"


def _no_checkpoint(folder: Path) -> str:
    if not folder.exists():
        return f"there is no saved model {folder}"
    if (folder / "config.json").exists():
        return f"{folder} has no {RECORD}: it is not from pxp_fast.save; is it timm:local-dir:{folder}?"
    return f"{folder} is no saved model: it has no {RECORD}"

"""The state of a fine-tuning between two epochs, in one safetensors file with the rest as JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import PxpError
from .files import atomic_write

_FORMAT = "pxp_fast.finetune"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch: its mean loss (None before the first), the accuracy after it, and the learning rate at its end."""

    epoch: int
    loss: float | None
    accuracy: float
    lr: float


@dataclasses.dataclass
class Tensors:
    """What the next epoch starts from: the ``state_dict`` of the model, of the optimiser and of the loss's scaler."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


@dataclasses.dataclass
class State:
    """A fine-tuning so far.

    Attributes
    ----------
    settings
        By which two fine-tunings are told apart.
    epochs
        Those done, and before them the model as it was.
    best
        The one of the highest accuracy.
    now
        For going on.
    weights
        The model's ``state_dict`` after the best epoch.
    """

    settings: dict[str, Any]
    epochs: list[Epoch]
    best: int
    now: Tensors
    weights: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write the file; replaced atomically."""
        tensors = {f"model/{name}": one for name, one in self.now.model.items()}
        tensors |= {f"best/{name}": one for name, one in self.weights.items()}
        numbers: dict[str, dict[str, Any]] = {}
        for index, held in self.now.optimizer["state"].items():
            for name, one in held.items():
                if isinstance(one, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = one
                else:
                    numbers.setdefault(str(index), {})[name] = one
        content = {
            "format": _FORMAT,
            "settings": self.settings,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
            "best": self.best,
            "groups": self.now.optimizer["param_groups"],
            "numbers": numbers,
            "scaler": self.now.scaler,
        }
        try:
            text = json.dumps(content)
        except TypeError as error:
            raise PxpError(
                f"the state of this optimizer cannot be saved ({error}); choose another, such as adamw"
            ) from error
        with atomic_write(path) as temporary:
            save_file(
                {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()},
                temporary,
                {"state": text},
            )

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> State:
        """Read a state of a fine-tuning with these settings.

        Raises
        ------
        PxpError
            The file is damaged, or of another fine-tuning.
        """
        try:
            with safe_open(path, "pt") as file:
                content = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if content["format"] != _FORMAT:
                raise ValueError("it holds something else")
            other = [name for name in settings if content["settings"].get(name) != settings[name]]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise PxpError(f"{path} is no intact state of a fine-tuning ({error}); delete it to begin anew") from error
        if other:
            was = content["settings"]
            found = [f"{name} {was.get(name)} instead of {settings[name]}" for name in other if name != "start"]
            found += ["another model or plan"] if "start" in other else []
            raise PxpError(
                f"{path} is the state of another fine-tuning ({', '.join(found)}); give another place, or delete it"
            )
        state: dict[int, dict[str, Any]] = {int(index): dict(held) for index, held in content["numbers"].items()}
        for name, one in tensors.items():
            if name.startswith("optimizer/"):
                _, index, own = name.split("/", 2)
                state.setdefault(int(index), {})[own] = one
        groups = [{name: tuple(one) if name == "betas" else one for name, one in g.items()} for g in content["groups"]]
        return cls(
            settings,
            [Epoch(**epoch) for epoch in content["epochs"]],
            content["best"],
            Tensors(_below(tensors, "model/"), {"state": state, "param_groups": groups}, content["scaler"]),
            _below(tensors, "best/"),
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's tensors and their names."""
    digest = hashlib.sha256()
    for name, one in model.state_dict().items():
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        digest.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

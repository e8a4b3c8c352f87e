"""What the demo carries: a subset of Fashion-MNIST, and three networks trained on all of it.

The images are Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), MIT licence, see LICENSE-fashion-mnist.txt.
Neither file format can run code: the images are plain NumPy arrays, the weights safetensors.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import DataError, ModelError
from .networks import NETWORKS

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = ("reference", "test")
INPUT_SIZE = (1, 28, 28)
MEAN = (0.2860,)
STD = (0.3530,)
FOLDER = Path(__file__).resolve().parent


def normalize(images: Tensor) -> Tensor:
    """Scale uint8 grey images [n, 1, 28, 28] to float32 of mean 0 and deviation 1 over the training set."""
    if images.dtype != torch.uint8:
        raise DataError(f"the demo's images are uint8, 0 to 255; got {images.dtype}; pass them as images() gives them")
    return (images.float() / 255 - MEAN[0]) / STD[0]


def images(split: str) -> tuple[Tensor, Tensor]:
    """Give the images, uint8 [n, 1, 28, 28], and labels, int64 [n], of a split; the classes come in turn.

    "reference": 1,000 images of the training set, 100 of each class. "test": 2,000 of the test set, 200 of each class.

    Raises
    ------
    DataError
        No such split, or the file is missing or damaged.
    """
    arrays = _arrays(split)
    return torch.from_numpy(arrays["images"]).unsqueeze(1), torch.from_numpy(arrays["labels"]).long()


def source(split: str) -> Tensor:
    """Give the position, int64 [n], of each of a split's images in Fashion-MNIST's training or test set."""
    return torch.from_numpy(_arrays(split)["source"]).long()


def _arrays(split: str) -> dict[str, np.ndarray]:
    if split not in SPLITS:
        raise DataError(f"the demo has no split {split!r}; choose from {', '.join(SPLITS)}")
    path = FOLDER / "images.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[f"{split}_{key}"] for key in ("images", "labels", "source")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read the demo's images {path}: {error}; reinstall pxp_fast") from error


def network(name: str, folder: Path = FOLDER) -> nn.Module:
    """Build a trained network in evaluation mode, float32: input [n, 1, 28, 28] from `normalize`, output [n, 10].

    Raises
    ------
    ModelError
        No such network, or its weights are missing, damaged, or do not fit.
    """
    state, _ = _weights(name, folder)
    model = NETWORKS[name]()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"the demo's weights of {name!r} do not fit it: {error}; reinstall pxp_fast") from error
    return model.eval()


def facts(name: str) -> dict:
    """What was measured when the network was trained: accuracy on the full test set, command, hardware, seconds ..."""
    return _weights(name, FOLDER)[1]


def _weights(name: str, folder: Path) -> tuple[dict[str, Tensor], dict]:
    if name not in NETWORKS:
        raise ModelError(f"the demo has no network {name!r}; choose from {', '.join(NETWORKS)}")
    path = folder / f"{name}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read the demo's weights {path}: {error}; reinstall pxp_fast") from error

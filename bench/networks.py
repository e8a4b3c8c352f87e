"""The networks and images that everything is measured on."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONAL = ("resnet18", "resnet50", "vgg16", "vgg16_bn")
TRANSFORMERS = ("vit_s_16", "vit_b_16")
NETWORKS = (*CONVOLUTIONAL, *TRANSFORMERS)
CLASSES = 1000


def network(name: str, size: int = 224) -> nn.Module:
    """A classifier of `size` pixel images with random weights, biases that are not zero, and a head that is not.

    ``vit_s_16`` is timm's vit_small_patch16_224, the others are torchvision's.
    """
    torch.manual_seed(0)
    if name == "vit_s_16":
        import timm

        model = timm.create_model("vit_small_patch16_224", img_size=size)
    else:
        options = {"image_size": size} if name in TRANSFORMERS else {}
        model = torchvision.models.get_model(name, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.05)
            elif not parameter.any():
                parameter.normal_(std=0.02)
    # Parameters keep requires_grad, as a user's do: without it ATen multiplies transposed tokens by copies of weights.
    # No gradient of a parameter is computed where only the image's is asked for.
    return model.eval()


def batches(count: int, images: int, size: int = 224) -> list[tuple[Tensor, Tensor]]:
    """Different batches of images [images, 3, size, size] and labels, to be scored in turn."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(images, 3, size, size, generator=generator),
            torch.randint(0, CLASSES, (images,), generator=generator),
        )
        for _ in range(count)
    ]


def fold(model: nn.Module) -> nn.Module:
    """Merge the batch norms of a VGG or ResNet into the convolutions before them, in place.

    Peers that merge batch norm themselves are given this instead: it is faster for them, and exact, while zennit's own
    merging leaves a factor of ``1 / sqrt(1 + 1e-5)``.
    """
    for parent in list(model.modules()):
        names = list(parent._modules)
        for first, second in zip(names, names[1:], strict=False):
            convolution, norm = parent._modules[first], parent._modules[second]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(convolution, norm)
                parent._modules[second] = nn.Identity()
    left = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ValueError(f"batch norms that follow no convolution directly: {', '.join(left)}")
    return model

"""Three classifiers of 32 x 32 colour images, laid out as the PXP paper's are in torchvision and timm.

Nothing in them is written for pruning. Their sizes are those that two CPU cores train and prune a hundred times over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pxp_fast.demo.networks import BasicBlock, ViT


class VGG16BN(nn.Module):
    """The 13 convolutions of VGG-16 at a fraction of their width, each with batch norm and ReLU; one linear classifier.

    Input [N, 3, 32, 32], output logits [N, classes].
    """

    def __init__(self, width: float = 0.25, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for full, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            outputs = round(full * width)
            for _ in range(depth):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
                layers.append(nn.ReLU(inplace=True))
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class ResNet20(nn.Module):
    """He et al.'s (2016) ResNet-20 for CIFAR: a stem, three stages of three basic blocks, global pool, classifier.

    Where the shape changes the shortcut is a strided 1 x 1 convolution, as in the ResNets that PXP prunes.
    Input [N, 3, 32, 32], output logits [N, classes].
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        inputs = widths[0]
        for stage, width in enumerate(widths, 1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layers = [BasicBlock(inputs if i == 0 else width, width, stride) for i, stride in enumerate(strides)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SmallViT(ViT):
    """The demo's vision transformer for colour images: eight 4 x 4 patches a side.

    Input [N, 3, 32, 32], output logits [N, classes]. While it trains, `patches` of the 64 patches are drawn for every
    batch (Liu et al., 2022, PatchDropout), which halves the work; in evaluation it always sees all.
    """

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 8, hidden: int = 256, classes: int = 10) -> None:
        super().__init__(width, depth, heads, hidden, 4, classes)
        self.patch_embed.proj = nn.Conv2d(3, width, 4, 4)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + 8 * 8, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patches = 64

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        if self.training and self.patches < 64:
            drawn = 1 + torch.randperm(64, device=x.device)[: self.patches]
            x = torch.cat([x[:, :1], x[:, drawn]], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


NETWORKS: dict[str, type[nn.Module]] = {"vgg16_bn": VGG16BN, "resnet20": ResNet20, "vit": SmallViT}

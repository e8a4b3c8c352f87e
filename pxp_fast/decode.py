"""From an image file to the tensor a network was trained on: decode, resize, crop, normalise.

PIL does the work, so no other package is needed and a corrupt file raises an ordinary exception. Pixels stay 8-bit
until a batch is normalised: a quarter of the memory of float32 in the queues between processes and in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its images.

    Parameters
    ----------
    input_size : (channels, height, width) of the network's input; channels is 1 or 3.
    mean, std : one number per channel, for pixels in [0, 1].
    interpolation : "nearest", "bilinear", "bicubic" or "lanczos".
    resize : pixels of the shorter side before the crop; None: exactly the crop's size.
    squash : resize straight to the input size, without regard to the aspect ratio, instead of cropping.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    resize: int | None = None
    squash: bool = False

    def __post_init__(self) -> None:
        channels = self.input_size[0] if len(self.input_size) == 3 else None
        if channels not in (1, 3) or min(self.input_size) < 1:
            raise ModelError(
                f"input_size is {self.input_size}; expected (channels, height, width) with 1 or 3 channels"
            )
        if len(self.mean) != channels or len(self.std) != channels or any(value <= 0 for value in self.std):
            raise ModelError(
                f"mean {self.mean} and std {self.std} do not fit {channels} input channels: "
                "give one number per channel, std above 0"
            )
        if self.interpolation not in _FILTERS:
            raise ModelError(f"interpolation is {self.interpolation!r}; choose one of {', '.join(_FILTERS)}")

    @classmethod
    def from_crop_fraction(
        cls, input_size: tuple[int, int, int], crop_fraction: float | None, **options: object
    ) -> Preprocess:
        """The preprocessing whose crop keeps `crop_fraction` of the resized shorter side (timm's ``crop_pct``)."""
        shorter = min(input_size[1:])
        return cls(input_size, resize=math.floor(shorter / (crop_fraction or 1.0)), **options)  # type: ignore[arg-type]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The network's view of `image`, not yet normalised: uint8 [channels, height, width]."""
        channels, height, width = self.input_size
        image = to_eight_bit(image, channels)
        filter_ = _FILTERS[self.interpolation]
        if self.squash:
            image = image.resize((width, height), filter_)
        else:
            image = image.resize(self._resized(image.width, image.height), filter_)
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        array = np.array(image, dtype=np.uint8)
        return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [N, channels, H, W] to float32: (pixels / 255 - mean) / std."""
        return self.normalizer(pixels.device)(pixels)

    def normalizer(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """:meth:`normalize` for pixels on `device`, whose numbers are put there only once: doing so waits for a GPU."""
        mean = torch.tensor(self.mean, device=device).reshape(-1, 1, 1)
        std = torch.tensor(self.std, device=device).reshape(-1, 1, 1)
        full = torch.tensor(255.0, device=device)  # a GPU divides by a Python number less exactly than by a tensor
        return lambda pixels: (pixels.float() / full - mean) / std

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize: the shorter side has `resize` pixels, both sides cover the crop."""
        _, crop_height, crop_width = self.input_size
        if crop_height == crop_width:
            shorter = max(self.resize or crop_height, crop_height)
            if width <= height:
                return shorter, int(shorter * height / width)
            return int(shorter * width / height), shorter
        margin = max((self.resize or 0) / min(crop_height, crop_width), 1.0)
        scale = max(margin * crop_width / width, margin * crop_height / height)
        return max(crop_width, round(width * scale)), max(crop_height, round(height * scale))


def to_eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """`image` as 8-bit grey (`channels` 1) or RGB (3), whatever it was: palette, alpha, CMYK, 16-bit, 1-bit.

    16-bit grey is scaled by 255 / 65535 (PIL would cut it off at 255). Alpha is dropped, as torchvision and timm do.
    """
    if image.mode.startswith("I"):
        wide = np.asarray(image, dtype=np.float64)
        scale = 255 / 65535 if image.mode.startswith("I;16") or wide.max(initial=0) > 255 else 1.0
        image = Image.fromarray(np.clip(np.rint(wide * scale), 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def read_pixels(path: Path, preprocess: Preprocess) -> torch.Tensor:
    """Decode the image at `path`: uint8 [channels, height, width]. Raises whatever the decoder raises."""
    with Image.open(path) as image:
        image.load()
        return preprocess.pixels(image)

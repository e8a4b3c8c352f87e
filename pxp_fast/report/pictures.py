"""Images and heat maps as data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from ..heatmaps import HeatMaps
    from ..results import HeatMapRecord

_POSITIVE = np.array([201, 42, 42], dtype=np.float64)
_NEGATIVE = np.array([28, 100, 190], dtype=np.float64)
_PHOTOGRAPH = 64
_POINTS = 56


class Row(NamedTuple):
    """One image, its maps before and after the cut (data URIs), and what belongs to them."""

    image: str
    before: str
    after: str
    record: HeatMapRecord
    small: bool


def rows(maps: HeatMaps) -> list[Row]:
    """A row per explained image. Red speaks for the labelled class, blue against it, over the image in pale grey."""
    shown = []
    for position, record in enumerate(maps.records):
        pixels = maps.images[position].permute(1, 2, 0).numpy()
        pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
        overlays = [overlay(pixels, legible(part[position])) for part in (maps.before, maps.after)]
        small = max(pixels.shape[:2]) <= _PHOTOGRAPH
        shown.append(Row(*(data_uri(picture, small) for picture in (pixels, *overlays)), record, small))
    return shown


def legible(relevance: Tensor) -> np.ndarray:
    """Relevance [H, W] as a map to look at, float32 in [-1, 1].

    Relevance of single pixels is too fine to see in a photograph, so neighbours are averaged down to about 56 points a
    side; one outlier would leave the rest white, so the scale ends where 1 % of the points exceed it.
    """
    relevance = relevance.float()[None, None]
    window = max(1, max(relevance.shape[2:]) // _POINTS)
    if window > 1:
        size = relevance.shape[2:]
        relevance = functional.avg_pool2d(relevance, window, ceil_mode=True)
        relevance = functional.interpolate(relevance, size, mode="bilinear")
    top = torch.quantile(relevance.abs().flatten(), 0.99).clamp_min(1e-30)
    return (relevance[0, 0] / top).clamp(-1, 1).numpy()


def overlay(pixels: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Relevance in [-1, 1], [H, W], over a pale grey version of `pixels`, uint8 [H, W, 3]: uint8 [H, W, 3]."""
    grey = 190 + 65 * (pixels.astype(np.float64).mean(2, keepdims=True) / 255)
    strength = (np.abs(relevance) ** 0.8)[..., None]
    colour = np.where(relevance[..., None] >= 0, _POSITIVE, _NEGATIVE)
    return np.clip(np.rint(grey * (1 - strength) + colour * strength), 0, 255).astype(np.uint8)


def data_uri(pixels: np.ndarray, lossless: bool) -> str:
    """An image as a data URI: PNG, or JPEG, which is a tenth of the size for photographs."""
    kind, options = ("png", {"optimize": True}) if lossless else ("jpeg", {"quality": 88})
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"

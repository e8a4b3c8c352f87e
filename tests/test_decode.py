"""Pixels compared with torchvision's transforms, and with numbers worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pxp_fast.decode import Preprocess, read_pixels
from pxp_fast.errors import ModelError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Wide, tall, exact, odd margins, and smaller than the crop.
@pytest.mark.parametrize("size", [(300, 200), (199, 331), (256, 256), (257, 256), (40, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_torchvision(size, interpolation):
    image = noise(*size)
    ours = Preprocess((3, 224, 224), interpolation=interpolation, resize=256)
    theirs = transforms.Compose(
        [
            transforms.Resize(256, InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(ours.mean, ours.std),
        ]
    )
    assert torch.allclose(ours.normalize(ours.pixels(image)[None])[0], theirs(image), atol=1e-6, rtol=0)


def test_the_crop_is_the_middle_and_normalisation_is_the_formula():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    preprocess = Preprocess((3, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    result = preprocess.normalize(preprocess.pixels(Image.fromarray(pixels))[None])[0]
    expected = (pixels[:, 1:5].astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(result.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_timms_crop_fraction_gives_timms_pixels():
    from timm.data import create_transform

    half = (0.5, 0.5, 0.5)
    theirs = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.95, mean=half, std=half)
    ours = Preprocess.from_crop_fraction((3, 224, 224), 0.95, mean=half, std=half, interpolation="bicubic")
    image = noise(320, 250)
    assert torch.allclose(ours.normalize(ours.pixels(image)[None])[0], theirs(image), atol=1e-6, rtol=0)


def test_squash_ignores_the_aspect_ratio():
    image = noise(50, 30)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    squashed = Preprocess((3, 16, 16), interpolation="bicubic", resize=18, squash=True).pixels(image)
    assert np.array_equal(squashed.permute(1, 2, 0).numpy(), expected)


def test_an_input_that_is_not_square_is_covered():
    image = Image.new("RGB", (100, 100), (10, 20, 30))
    pixels = Preprocess((3, 32, 64), resize=36).pixels(image)
    assert pixels.shape == (3, 32, 64)
    assert [int(channel.unique().item()) for channel in pixels] == [10, 20, 30]


def as_mode(mode: str, value: int):
    if mode == "I;16":
        return Image.fromarray(np.full((8, 8), value * 257, dtype=np.uint16))
    if mode == "RGBA":
        return Image.new("RGBA", (8, 8), (value, value, value, 77))
    if mode == "LA":
        return Image.new("LA", (8, 8), (value, 77))
    if mode == "CMYK":
        return Image.new("CMYK", (8, 8), (255 - value,) * 3 + (0,))
    if mode == "P":
        return Image.new("RGB", (8, 8), (value,) * 3).quantize(4)
    return Image.new(mode, (8, 8), value)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_same_grey(tmp_path, mode, channels):
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    as_mode(mode, 173).save(path)
    ones = (1.0,) * channels
    pixels = read_pixels(path, Preprocess((channels, 8, 8), mean=ones, std=ones))
    assert pixels.dtype == torch.uint8
    assert (pixels.int() - 173).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_size": (4, 8, 8)}, "1 or 3 channels"),
        ({"input_size": (3, 8, 8), "mean": (0.5,)}, "one number per channel"),
        ({"input_size": (3, 8, 8), "std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"input_size": (3, 8, 8), "interpolation": "cubical"}, "bicubic"),
    ],
)
def test_impossible_preprocessing_is_refused(options, words):
    with pytest.raises(ModelError, match=words):
        Preprocess(**options)

"""Heat maps: colours worked out by hand, and pictures that survive being encoded."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from pxp_fast.heatmaps import HeatMaps
from pxp_fast.report.pictures import data_uri, legible, overlay, rows
from report.examples import results


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_no_relevance_shows_the_pale_image_and_full_relevance_the_colour():
    pixels = np.zeros((1, 3, 3), dtype=np.uint8)
    pixels[0, 2] = 255
    shown = overlay(pixels, np.array([[1.0, -1.0, 0.0]]))
    assert shown[0].tolist() == [[201, 42, 42], [28, 100, 190], [255, 255, 255]]
    assert overlay(pixels, np.zeros((1, 3)))[0, 0].tolist() == [190, 190, 190]


def test_small_pictures_are_exact_and_photographs_close():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    assert np.array_equal(decode(data_uri(pixels, lossless=True)), pixels)
    smooth = np.broadcast_to(np.linspace(0, 255, 200, dtype=np.uint8)[:, None, None], (200, 200, 3)).copy()
    assert np.abs(decode(data_uri(smooth, lossless=False)).astype(int) - smooth).max() < 12


def test_maps_of_photographs_are_averaged_and_scaled_without_their_outlier():
    relevance = torch.zeros(112, 112)
    relevance[:56] = 1
    relevance[56:, :56] = -0.5
    relevance[111, 111] = 1000
    shown = legible(relevance)
    assert shown.shape == (112, 112)
    np.testing.assert_allclose(shown[10:50, 10:50], 1, atol=1e-6)
    np.testing.assert_allclose(shown[70:100, 10:40], -0.5, atol=1e-6)


def test_small_maps_keep_every_pixel():
    relevance = torch.tensor([[0.5, -0.5], [0.25, 0.0]])
    np.testing.assert_allclose(legible(relevance), [[1, -1], [0.5, 0]], atol=0.02)


def test_grey_images_become_rows_with_both_maps():
    found = results()
    image = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    one = torch.ones(1, 4, 4).half()
    (row,) = rows(HeatMaps(image, one, -one, found.heatmaps))
    assert row.small
    assert (decode(row.image) == 100).all()
    assert (decode(row.before) == [201, 42, 42]).all()
    assert (decode(row.after) == [28, 100, 190]).all()

"""The parts of the training script that decide whether its numbers mean anything."""

import dataclasses
import gzip
import struct

import pytest
import torch

from bench import train_demo


def test_idx_files_are_read_in_their_order(tmp_path):
    content = b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 3) + bytes(range(12))
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    assert train_demo.read_idx(tmp_path / "x.gz").tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match="not an idx file of uint8"):
        train_demo.read_idx(tmp_path / "x.gz")


def test_augmentation_only_flips_and_shifts():
    images = torch.randint(1, 256, (100, 1, 5, 5), dtype=torch.uint8)
    seen = set()
    for before, after in zip(images, train_demo.augment(images, 2, torch.Generator().manual_seed(0)), strict=True):
        matches = []
        for flip in (False, True):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    expected = torch.zeros_like(before)
                    source = before.flip(-1) if flip else before
                    for y in range(5):
                        for x in range(5):
                            if 0 <= y + dy < 5 and 0 <= x + dx < 5:
                                expected[0, y, x] = source[0, y + dy, x + dx]
                    if torch.equal(expected, after):
                        matches.append((flip, dy, dx))
        assert len(matches) == 1
        seen |= set(matches)
    assert len(seen) > 35, "100 images should show most of the 50 flips and shifts"


def test_chosen_images_are_balanced_and_distinct():
    labels = torch.arange(1000).remainder(10)[torch.randperm(1000)]
    index = train_demo.choose(labels, 7, torch.Generator().manual_seed(3))
    assert labels[index].tolist() == list(range(10)) * 7
    assert len(index.unique()) == 70


@pytest.mark.parametrize("name", train_demo.RECIPES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(name, monkeypatch):
    monkeypatch.setitem(train_demo.RECIPES, name, dataclasses.replace(train_demo.RECIPES[name], epochs=2))
    images = torch.randint(256, (128, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(128) % 10
    first, again, other = (train_demo.train(name, images, labels, None, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_what_is_measured_is_what_is_written():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(1 + 2**-12)
    state = train_demo.round_to_half(model)
    assert state["weight"].dtype == torch.float16
    assert model.weight.unique().tolist() == [1.0]
    with torch.no_grad():
        model.weight.fill_(1e5)
    with pytest.raises(ValueError, match="float16 cannot hold weight"):
        train_demo.round_to_half(model)

"""What the demo carries is what it says: the images are Fashion-MNIST's, the networks are as good as their headers."""

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bench import assets
from pxp_fast import demo
from pxp_fast.demo import data
from pxp_fast.errors import DataError, ModelError

FOLDER = Path(data.__file__).parent


@pytest.mark.parametrize("name", demo.NETWORKS)
def test_accuracy_is_what_the_header_says(name):
    images, labels = demo.images("test")
    model = demo.network(name)
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        outputs = torch.cat([model(demo.normalize(x)) for x in images.split(250)])
    accuracy = float((outputs.argmax(1) == labels).float().mean())
    facts = demo.facts(name)
    assert accuracy >= 0.88
    assert facts["accuracy"] >= 0.88
    # 2,000 images of a network right on 92 % of them: the standard deviation is 0.6 %.
    assert abs(accuracy - facts["accuracy"]) < 0.025
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["command"].startswith("python -m bench.train_demo")


def test_everything_together_is_under_6_mb():
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir() if file.is_file() and file.suffix != ".py"}
    assert {"images.npz", "vgg.safetensors", "resnet.safetensors", "vit.safetensors"} <= set(sizes)
    assert sum(sizes.values()) < 6_000_000, sizes


@pytest.mark.parametrize(("split", "per_class"), [("reference", 100), ("test", 200)])
def test_labels_are_balanced_in_every_prefix(split, per_class):
    images, labels = demo.images(split)
    assert images.shape == (10 * per_class, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert all(sorted(chunk.tolist()) == list(range(10)) for chunk in labels.split(10))
    assert len(demo.source(split).unique()) == len(labels)


@pytest.mark.parametrize(("split", "prefix"), [("reference", "train"), ("test", "t10k")])
def test_images_are_the_originals(split, prefix):
    root = assets.present("fashion-mnist")
    if root is None:
        pytest.skip("the full data set is not on this machine: python -m bench.assets fashion-mnist")
    content = gzip.decompress((root / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    answers = gzip.decompress((root / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    _, _, height, width = struct.unpack(">4i", content[:16])
    images, labels = demo.images(split)
    for image, label, index in zip(images, labels.tolist(), demo.source(split).tolist(), strict=True):
        start = 16 + index * height * width
        assert image.numpy().tobytes() == content[start : start + height * width]
        assert label == answers[8 + index]


def test_normalized_images_have_mean_0_and_deviation_1():
    x = demo.normalize(demo.images("reference")[0])
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
    grey = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    expected = [(value - demo.MEAN[0]) / demo.STD[0] for value in (0.0, 0.2, 1.0)]
    assert demo.normalize(grey).flatten().tolist() == pytest.approx(expected)
    with pytest.raises(DataError, match=r"uint8, 0 to 255; got torch\.float32"):
        demo.normalize(x)


@pytest.mark.parametrize("name", demo.NETWORKS)
def test_weights_are_float16_and_arrive_unchanged(name):
    state = demo.network(name).state_dict()
    with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
        assert set(file.keys()) == set(state)
        for key, value in state.items():
            stored = file.get_tensor(key)
            assert stored.dtype == (np.float16 if value.is_floating_point() else np.int64)
            np.testing.assert_array_equal(value.numpy(), stored.astype(value.numpy().dtype))


def test_nothing_is_unpickled(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a pickle was read")

    for target in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, target, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    for name in demo.NETWORKS:
        demo.network(name)
        demo.facts(name)
    for split in data.SPLITS:
        demo.images(split)


def test_vit_is_timms():
    """The same weights in timm's vision transformer give the same logits: the modules mean what their names say."""
    timm = pytest.importorskip("timm", reason="timm is the independent implementation here")
    ours = demo.network("vit")
    block = ours.blocks[0]
    theirs = timm.models.VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=block.attn.qkv.in_features,
        depth=len(ours.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / block.mlp.fc1.in_features,
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = demo.normalize(demo.images("test")[0][:20])
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_two_loads_share_nothing():
    first, second = demo.network("vgg"), demo.network("vgg")
    before = [p.clone() for p in second.parameters()]
    with torch.no_grad():
        for p in first.parameters():
            p.zero_()
    assert all(torch.equal(p, q) for p, q in zip(second.parameters(), before, strict=True))
    images, _ = demo.images("test")
    images.zero_()
    assert int(demo.images("test")[0].sum()) > 0


def test_unknown_names_list_the_known():
    with pytest.raises(ModelError, match="no network 'alexnet'; choose from vgg, resnet, vit"):
        demo.network("alexnet")
    with pytest.raises(DataError, match="no split 'train'; choose from reference, test"):
        demo.images("train")


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_damaged_files_are_named(tmp_path, monkeypatch, size):
    for name in ("images.npz", "vgg.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes()[:size])
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(DataError, match=r"cannot read the demo's images .*images\.npz.*reinstall"):
        demo.images("test")
    with pytest.raises(ModelError, match=r"cannot read the demo's weights .*vgg\.safetensors.*reinstall"):
        demo.network("vgg", tmp_path)


def test_weights_of_another_network_do_not_fit(tmp_path):
    shutil.copy(FOLDER / "vgg.safetensors", tmp_path / "resnet.safetensors")
    with pytest.raises(ModelError, match="weights of 'resnet' do not fit it"):
        demo.network("resnet", tmp_path)

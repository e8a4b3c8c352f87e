"""Conversions against networks written down from the definition of what the archive holds."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from bench import assets
from bench.assets import AssetError, convert


def tar_of(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def keras_arrays(rng):
    """Random ResNet-50 weights under Keras' names, kernels [h, w, in, out], scaled so that activations stay near 1."""
    arrays = {}

    def layer(name, norm, size, inputs, outputs):
        shape = (size, size, inputs, outputs)
        arrays[f"{name}/kernel"] = rng.standard_normal(shape, np.float32) * np.float32((size * size * inputs) ** -0.5)
        arrays[f"{name}/bias"] = rng.standard_normal(outputs, np.float32)
        arrays[f"{norm}/gamma"] = rng.uniform(0.5, 1, outputs).astype(np.float32)
        arrays[f"{norm}/beta"] = rng.standard_normal(outputs, np.float32)
        arrays[f"{norm}/moving_mean"] = rng.standard_normal(outputs, np.float32)
        # Small variances let the epsilon of 1e-3 show.
        arrays[f"{norm}/moving_variance"] = rng.uniform(0.002, 2, outputs).astype(np.float32)

    layer("conv1", "bn_conv1", 7, 3, 64)
    arrays["conv1/kernel"] /= 64
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in "abcdef"[:blocks]:
            tag = f"{stage}{block}"
            if block == "a":
                layer(f"res{tag}_branch1", f"bn{tag}_branch1", 1, inputs, 4 * width)
            layer(f"res{tag}_branch2a", f"bn{tag}_branch2a", 1, inputs, width)
            layer(f"res{tag}_branch2b", f"bn{tag}_branch2b", 3, width, width)
            layer(f"res{tag}_branch2c", f"bn{tag}_branch2c", 1, width, 4 * width)
            inputs = 4 * width
    arrays["fc1000/kernel"] = rng.standard_normal((2048, 1000), np.float32) / 32
    arrays["fc1000/bias"] = rng.standard_normal(1000, np.float32)
    return arrays


def keras_resnet50(arrays, bgr):
    """Keras' ResNet-50 (version 1), layer by layer: biased convolutions, batch norm of epsilon 1e-3, stride first.

    `bgr`: [n, 3, h, w], 0 to 255 less the mean.
    """

    def layer(x, name, norm, stride=1, padding=0):
        kernel = torch.from_numpy(arrays[f"{name}/kernel"]).double().permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, torch.from_numpy(arrays[f"{name}/bias"]).double(), stride, padding)
        gamma, beta, mean, variance = (
            torch.from_numpy(arrays[f"{norm}/{key}"]).double().view(1, -1, 1, 1)
            for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / (variance + 1e-3).sqrt() + beta

    x = F.max_pool2d(F.relu(layer(bgr, "conv1", "bn_conv1", 2, 3)), 3, 2, 1)
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in "abcdef"[:blocks]:
            tag = f"{stage}{block}"
            stride = 2 if block == "a" and stage > 2 else 1
            shortcut = layer(x, f"res{tag}_branch1", f"bn{tag}_branch1", stride) if block == "a" else x
            x = F.relu(layer(x, f"res{tag}_branch2a", f"bn{tag}_branch2a", stride))
            x = F.relu(layer(x, f"res{tag}_branch2b", f"bn{tag}_branch2b", 1, 1))
            x = F.relu(layer(x, f"res{tag}_branch2c", f"bn{tag}_branch2c") + shortcut)
    return x.mean((2, 3)) @ torch.from_numpy(arrays["fc1000/kernel"]).double() + torch.from_numpy(arrays["fc1000/bias"])


def tensorflow_js(arrays, cut):
    """Files of a TensorFlow.js model with the arrays in one group, its bytes cut into two shards at `cut`."""
    entries = [{"name": k, "shape": list(v.shape), "dtype": "float32"} for k, v in arrays.items()]
    content = b"".join(np.ascontiguousarray(v).tobytes() for v in arrays.values())
    paths = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    manifest = {"weightsManifest": [{"paths": paths, "weights": entries}]}
    return {"model.json": json.dumps(manifest).encode(), paths[0]: content[:cut], paths[1]: content[cut:]}


def test_resnet50_answers_as_keras_definition(tmp_path):
    arrays = keras_arrays(np.random.default_rng(0))
    files = tensorflow_js(arrays, cut=1_000_003)
    tar_of(tmp_path / "a.tgz", {f"package/ResNet50/{k}": v for k, v in files.items()}, mode="w")
    convert.resnet50(tmp_path / "a.tgz", tmp_path)
    model = convert.build_resnet50(tmp_path / "resnet50.safetensors")
    assert not model.training
    assert not (tmp_path / "raw").exists()

    rgb = torch.randint(0, 256, (2, 3, 75, 90), generator=torch.Generator().manual_seed(0)).double()
    mean, std = (torch.tensor(model.pxp_input[key], dtype=torch.float64).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        got = model.double()((rgb / 255 - mean) / std)
        expected = keras_resnet50(arrays, (rgb - 255 * mean).flip(1))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_resnet50_gets_19_of_20_photographs_right():
    from torchvision.models import ResNet50_Weights

    if assets.present("resnet50") is None or assets.present("photographs") is None:
        pytest.skip("the real weights and photographs are not here: python -m bench.assets resnet50 photographs")
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms()
    files = sorted(assets.path("photographs").glob("*/*.jpg"))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        predicted = assets.resnet50()(images).argmax(1).tolist()
    right = [int(file.parent.name) == label for file, label in zip(files, predicted, strict=True)]
    assert len(right) == 20
    assert sum(right) == 19


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"group1-shard2of2.bin": b""}), "shards end within b"),
        (lambda files: files.update({"group1-shard2of2.bin": bytes(100)}), "their manifest names"),
        (
            lambda files: files.update({"model.json": files["model.json"].replace(b"float32", b"uint8")}),
            "expected plain float32",
        ),
    ],
)
def test_shards_that_do_not_fit_their_manifest_are_refused(tmp_path, change, message):
    files = tensorflow_js({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, cut=30)
    change(files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AssetError, match=message):
        convert.read_shards(tmp_path)


def test_a_missing_weight_is_named():
    with pytest.raises(AssetError, match="lack 'conv1/kernel'"):
        convert.resnet50_state({"other": np.zeros(1, np.float32)})


def test_vgg16_kernels_become_torchvisions(tmp_path):
    """Each converted layer gives what Flax's definition gives, and has torchvision's name and shape."""
    from torchvision.models import vgg16

    rng = np.random.default_rng(0)
    reference = {k: v for k, v in vgg16().state_dict().items() if k.startswith("features")}
    widths = [v.shape[:2] for k, v in reference.items() if k.endswith("weight")]
    arrays = {}
    for i, (outputs, inputs) in enumerate(widths):
        arrays[f"VGG16_0/Conv_{i}/kernel"] = rng.standard_normal((3, 3, inputs, outputs), np.float32)
        arrays[f"VGG16_0/Conv_{i}/bias"] = rng.standard_normal(outputs, np.float32)
    state = convert.vgg16_state(arrays)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.items()}
    for i, key in enumerate(k.removesuffix(".weight") for k in state if k.endswith("weight")):
        patch = rng.standard_normal((3, 3, widths[i][1])).astype(np.float32)
        expected = (
            np.einsum("hwi,hwio->o", patch, arrays[f"VGG16_0/Conv_{i}/kernel"]) + arrays[f"VGG16_0/Conv_{i}/bias"]
        )
        image = torch.from_numpy(patch).permute(2, 0, 1)[None]
        got = F.conv2d(image, state[f"{key}.weight"], state[f"{key}.bias"])[0, :, 0, 0]
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-4, atol=1e-3)


def test_photographs_become_an_image_folder_named_by_label(tmp_path):
    names = {"imagenet_00_243": "0243/00", "imagenet_06_609": "0609/06", "imagenet_07_609": "0609/07"}
    names |= {"imagenet_15_99": "0099/15", "imagenet_03_990": "0990/03"}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
        for name in [*names, "cifar10_00_3", "imagenet_x_1"]:
            file.writestr(f"foolbox/data/{name}.jpg", name)
        file.writestr("foolbox/__init__.py", "raise SystemExit")
    convert.photographs(tmp_path / "a.whl", tmp_path)
    found = {f.relative_to(tmp_path).as_posix(): f.read_text() for f in tmp_path.rglob("*.jpg")}
    assert found == {f"photographs/{new}.jpg": old for old, new in names.items()}
    assert not (tmp_path / "raw").exists()


def cifar10_archive(path, sheets, train_labels, test_labels):
    files = {}
    for name, pixels in sheets.items():
        stream = io.BytesIO()
        Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(stream, "png")
        files[f"package/{name}.png"] = stream.getvalue()
    files["package/train_lables.json"] = json.dumps(train_labels).encode()
    files["package/test_lables.json"] = json.dumps(test_labels).encode()
    tar_of(path, files)


def test_cifar10_sheets_become_images(tmp_path):
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in (1, 2, 3, 4, 5)), "test_batch"]
    sheets = {name: rng.integers(0, 256, (10, 32, 32, 3), np.uint8) for name in names}
    train, test = [i % 10 for i in range(3, 53)], list(range(9, -1, -1))
    cifar10_archive(tmp_path / "a.tgz", sheets, train, test)
    convert.cifar10(tmp_path / "a.tgz", tmp_path)
    state = load_file(tmp_path / "cifar10.safetensors")
    assert state["train_labels"].tolist() == train
    assert state["test_labels"].tolist() == test
    for i, split, index in ((0, "train", 0), (1, "train", 14), (4, "train", 49), (5, "test", 7)):
        for y, x, colour in ((0, 0, 0), (0, 5, 2), (31, 30, 1)):
            expected = sheets[names[i]][index % 10, y, x, colour]
            assert state[f"{split}_images"][index, colour, y, x] == expected


def test_cifar10_with_labels_missing_is_refused(tmp_path):
    sheet = np.zeros((10, 32, 32, 3), np.uint8)
    sheets = dict.fromkeys([*(f"data_batch_{i}" for i in (1, 2, 3, 4, 5)), "test_batch"], sheet)
    cifar10_archive(tmp_path / "a.tgz", sheets, list(range(10)) * 4, list(range(10)))
    with pytest.raises(AssetError, match="train split has 50 images and 40 labels"):
        convert.cifar10(tmp_path / "a.tgz", tmp_path)

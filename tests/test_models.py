"""Networks by name, and weights that fit, do not fit, or are no weights."""

import pickle

import pytest
import torch
from pictures_on_disk import tiny, write_module
from safetensors.torch import save_file

from pxp_fast.errors import ModelError
from pxp_fast.models import load


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of networks in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_module(tmp_path)


def test_a_callable_of_ones_own(module):
    found = load(f"{module}:classifier", checkpoint_kwargs={"width": 9})
    assert found.model[0].out_channels == 9
    assert (found.name, found.num_classes, found.input_size) == (f"{module}:classifier", 3, (3, 16, 16))
    assert (found.mean, found.std, found.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")
    assert not found.model.training


def test_timm_brings_its_own_preprocessing():
    found = load("timm:resnet18", checkpoint_kwargs={"num_classes": 7})
    assert (found.num_classes, found.weights, found.input_size) == (7, "random", (3, 224, 224))
    assert (found.interpolation, found.preprocess.resize) == ("bicubic", 235)  # 224 / 0.95
    grey = load("timm:vit_tiny_patch16_224", checkpoint_kwargs={"in_chans": 1, "num_classes": 2})
    assert grey.input_size == (1, 224, 224)


def test_torchvision_brings_its_own_preprocessing():
    found = load("torchvision:resnet18")
    assert (found.num_classes, found.input_size, found.preprocess.resize) == (1000, (3, 224, 224), 256)
    assert found.mean == (0.485, 0.456, 0.406)


def test_the_embedded_networks():
    found = load("demo:resnet")
    assert (found.input_size, found.num_classes) == ((1, 28, 28), 10)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet18", "write timm:NAME"),
        ("timm:", "write timm:NAME"),
        ("timm:resnet81", "did you mean .*resnet"),
        ("torchvision:vgg61", "did you mean .*vgg16"),
        ("demo:lenet", "demo:vgg, demo:resnet, demo:vit"),
        ("no_such_module:net", "cannot import 'no_such_module'"),
        ("{module}:nothing", "has no 'nothing'; it has .*classifier"),
        ("{module}:number", "is a int; name a callable"),
        ("{module}:failing", "building the network failed with KeyError: 'no such layer'"),
        ("{module}:SOURCELESS", "has no"),
        ("{module}:stacked", "a classifier returns logits|does not accept"),
        ("{module}:poisoned", r"parameter 4\.weight holds NaN or infinite values \(1 of 18\)"),
    ],
)
def test_what_cannot_be_loaded_is_explained(module, spec, words):
    with pytest.raises(ModelError, match=words):
        load(spec.format(module=module))


def test_arguments_the_constructor_does_not_know(module):
    with pytest.raises(ModelError, match="unexpected keyword argument 'depth'"):
        load(f"{module}:classifier", checkpoint_kwargs={"depth": 2})


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_names_the_extra(monkeypatch, library):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ModelError, match=r"pip install 'pxp_fast\[models\]'"):
        load(f"{library}:resnet18")


@pytest.fixture
def trained():
    """A state dict that differs from the network as built."""
    return {name: tensor + 1 for name, tensor in tiny().state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["bare", "lightning", "distributed", "compiled"],
)
def test_weights_are_loaded_from_what_training_scripts_leave(module, tmp_path, trained, wrap):
    torch.save(wrap(trained), tmp_path / "weights.pth")
    found = load(f"{module}:classifier", weights=tmp_path / "weights.pth")
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, trained[name])
    assert len(found.weights_sha256) == 64


def test_weights_are_loaded_from_safetensors(module, tmp_path, trained):
    save_file(trained, tmp_path / "weights.safetensors")
    found = load(f"{module}:classifier", weights=tmp_path / "weights.safetensors")
    assert torch.equal(found.model.state_dict()["4.weight"], trained["4.weight"])


def test_weights_that_do_not_fit_are_named(module, tmp_path, trained):
    del trained["0.bias"]
    trained["classifier.weight"] = torch.zeros(2)
    trained["4.weight"] = torch.zeros(5, 6)
    torch.save(trained, tmp_path / "weights.pth")
    with pytest.raises(ModelError) as caught:
        load(f"{module}:classifier", weights=tmp_path / "weights.pth")
    message = str(caught.value)
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: classifier.weight" in message
    assert "4.weight is (5, 6), the model's is (3, 6)" in message
    assert "--checkpoint-kwargs" in message


def test_weights_with_infinity_are_refused(module, tmp_path, trained):
    trained["0.weight"][2, 1, 0, 0] = float("inf")
    torch.save(trained, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"parameter 0\.weight holds NaN or infinite values \(1 of 162\)"):
        load(f"{module}:classifier", weights=tmp_path / "weights.pth")


NORMED = """

def normed(wrong="", value=0.0):
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

        def forward(self, x):
            return x + 0 * self.mask.isinf().sum()

    built = classifier()
    model = nn.Sequential(built[0], nn.BatchNorm2d(6), Masking(), *list(built)[1:])
    if wrong:
        model.state_dict()[wrong].view(-1)[1] = float(value)
    model.pxp_input = built.pxp_input
    return model
"""


@pytest.fixture
def normed(module, tmp_path):
    """A network with batch statistics and a mask of minus infinity."""
    with open(tmp_path / f"{module}.py", "a") as source:
        source.write(NORMED)
    return f"{module}:normed"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_saved_before_batches_were_counted_are_loaded(normed, tmp_path, suffix):
    state = load(normed).model.state_dict()
    old = {name: tensor + 1 for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == len(state) - 1
    path = tmp_path / f"old.{suffix}"
    save_file(old, path) if suffix == "safetensors" else torch.save(old, path)
    found = load(normed, weights=path).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in old.items())
    del old["1.running_var"]
    torch.save(old, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"1 missing: 1\.running_var\."):
        load(normed, weights=tmp_path / "less.pth")


def test_a_mask_may_hold_infinities(normed):
    assert load(normed).model.state_dict()["2.mask"].isinf().sum() == 6


@pytest.mark.parametrize(
    ("wrong", "value"),
    [("2.mask", "nan"), ("1.running_var", "inf"), ("1.running_mean", "-inf"), ("1.weight", "inf"), ("0.bias", "nan")],
)
def test_infinity_and_nan_that_matter_are_refused(normed, wrong, value):
    with pytest.raises(ModelError, match=rf"{wrong.replace('.', '[.]')} holds NaN or infinite values \(1 of"):
        load(normed, checkpoint_kwargs={"wrong": wrong, "value": value})


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_files_that_are_no_weights(module, tmp_path, capsys):
    spec = f"{module}:classifier"
    with pytest.raises(ModelError, match="does not exist"):
        load(spec, weights=tmp_path / "nowhere.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise" * 100)
    with pytest.raises(ModelError, match="cannot read .*noise.pth as a state dict"):
        load(spec, weights=tmp_path / "noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    with pytest.raises(ModelError, match="cannot read .*noise.safetensors as safetensors"):
        load(spec, weights=tmp_path / "noise.safetensors")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(ModelError, match="Only tensors are read, never code"):
        load(spec, weights=tmp_path / "bomb.pth")
    assert "code from a weights file ran" not in capsys.readouterr().out
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "wrong.pth")
    with pytest.raises(ModelError, match="holds no state dict: found epoch, optimizer"):
        load(spec, weights=tmp_path / "wrong.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds a list, not a state dict"):
        load(spec, weights=tmp_path / "list.pth")

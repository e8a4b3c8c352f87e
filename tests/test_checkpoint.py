"""Saved models: what is read again is the same network, bit for bit, whatever was cut out of it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from oracles.networks import pictures, randomise
from pictures_on_disk import write_module
from safetensors.torch import load_file
from small_families import FAMILIES, logits, network, slimmed
from torch import nn
from torch.nn.utils import prune

import pxp_fast as pxp
from pxp_fast import models
from pxp_fast.results import Hits

ROOT = Path(__file__).parents[1]


def same(one: nn.Module, other: nn.Module, images) -> None:
    """Two networks have the same parts with the same tensors, and give the same logits."""
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) and states[0][key].dtype == states[1][key].dtype
               for key in states[0])  # fmt: skip
    assert [type(m) for m in one.modules()] == [type(m) for m in other.modules()]
    assert str(one) == str(other)  # the sizes that modules say they have
    assert torch.equal(logits(one, images), logits(other, images))


@pytest.mark.parametrize("rate", [0.3, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_slimmed_network_comes_back(family, rate, tmp_path):
    small, images, plan = slimmed(family, rate)
    name, arguments, _ = FAMILIES[family]
    pxp.save(small, tmp_path / "small", name=name, arguments=arguments, plan=plan, example=images)
    again = pxp.load(tmp_path / "small", trust=True)
    same(small, again, images)
    assert again.pxp_slim == small.pxp_slim and again.pxp_origin.plans == (plan,)
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == small.state_dict().keys()


def test_saving_disturbs_neither_the_model_nor_random_numbers(tmp_path):
    small, images, plan = slimmed("resnet, bottleneck", 0.5)
    small.train()
    before = copy.deepcopy(small)
    torch.manual_seed(3)
    pxp.save(small, tmp_path / "small", plan=plan, example=images)
    pxp.load(tmp_path / "small")
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert small.training
    same(before.eval(), small.eval(), images)


@pytest.mark.parametrize("family", ["vgg", "swin of timm", "regnet"])
def test_a_network_that_is_whole_comes_back(family, tmp_path):
    model, images, _, _ = network(family)
    name, arguments, _ = FAMILIES[family]
    pxp.save(model, tmp_path / "whole", name=name, arguments=arguments, example=images)
    same(model, pxp.load(tmp_path / "whole"), images)
    content = json.loads((tmp_path / "whole" / "pxp.json").read_text())
    assert not any(content["changes"].values()) and content["plans"] == []


def test_a_masked_network_comes_back(tmp_path):
    model, images, _, scores = network("resnet, bottleneck")
    plan = pxp.plan(scores, 0.5)
    masked = copy.deepcopy(model)
    pxp.apply_mask(masked, plan)
    pxp.save(masked, tmp_path / "masked", plan=plan, example=images)
    again = pxp.load(tmp_path / "masked")
    same(masked, again, images)
    with pxp.masked(model, plan):
        assert torch.equal(logits(model, images), logits(again, images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["swin of timm", "resnet, bottleneck"])
def test_any_dtype(family, dtype, tmp_path):
    small, images, plan = slimmed(family, 0.5)
    name, arguments, _ = FAMILIES[family]
    small, images = copy.deepcopy(small).to(dtype), images.to(dtype)
    pxp.save(small, tmp_path / "small", name=name, arguments=arguments, plan=plan, example=images)
    again = pxp.load(tmp_path / "small")
    assert {t.dtype for t in again.buffers()} == {t.dtype for t in small.buffers()}
    same(small, again, images)


MODULE = '''
from torch import nn


class Tied(nn.Module):
    """A layer that is called at two depths under two names, and two layers with the same weight."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = self.second
        self.fourth, self.fifth = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.fifth.weight = self.fourth.weight
        self.register_buffer("scale", self.first.weight.new_tensor(0.5), persistent=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.third(self.second(self.first(x)).relu()).relu().mean((2, 3))
        return self.head(self.fifth(self.fourth(x).relu()).relu()) * self.scale
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module with a network of one's own, which can be imported."""
    monkeypatch.chdir(tmp_path)
    name = write_module(tmp_path)
    with open(tmp_path / f"{name}.py", "a") as file:
        file.write(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_tied_parameters_stay_tied(module, tmp_path):
    loaded = __import__(module).Tied().eval()
    loaded.scale.fill_(0.25)
    images, _ = pictures(2, 12)
    pxp.save(loaded, tmp_path / "saved", name=f"{module}:Tied", example=images)
    again = pxp.load(tmp_path / "saved", trust=True)
    assert again.fifth.weight is again.fourth.weight and again.third is again.second
    assert again.scale == 0.25 and "scale" not in again.state_dict()
    same(loaded, again, images)


def test_tied_parameters_that_are_tied_no_more(module, tmp_path):
    loaded = __import__(module).Tied().eval()
    loaded.fifth.weight = nn.Parameter(torch.randn(8, 8))
    images, _ = pictures(2, 12)
    pxp.save(loaded, tmp_path / "saved", name=f"{module}:Tied", arguments={"width": 8}, example=images)
    same(loaded, pxp.load(tmp_path / "saved", trust=True), images)


def test_code_of_others_is_called_only_by_those_who_trust_it(module, tmp_path):
    loaded = models.load(f"{module}:classifier")
    pxp.save(loaded.model, tmp_path / "saved")
    with pytest.raises(pxp.PxpError, match=f"is built by {module}:classifier, code that is not pxp_fast's"):
        pxp.load(tmp_path / "saved")
    again = models.load(f"pxp:{tmp_path / 'saved'}", checkpoint_kwargs={"trust": True})
    assert again.preprocess == loaded.preprocess and again.num_classes == 3
    same(loaded.model, again.model, torch.randn(2, *loaded.input_size))


def test_a_block_that_became_the_identity_and_a_bias_that_was_added(tmp_path):
    model = torchvision.models.resnet18(num_classes=4).eval()
    model.layer1[1] = nn.Identity()
    model.layer2[0].conv1.bias = nn.Parameter(torch.randn(128))
    model.fc.bias = None
    model.bn1.eps = 0.5
    images, _ = pictures(2, 32)
    pxp.save(model, tmp_path / "saved", name="torchvision:resnet18", example=images)
    again = pxp.load(tmp_path / "saved")
    same(model, again, images)
    assert again.bn1.eps == 0.5 and again.fc.bias is None


def test_the_constructor_is_known_without_being_told(tmp_path):
    """By what the model was loaded by, by timm's own memory, by the plan; never by chance."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7, embed_dim=48).eval()
    pxp.save(model, tmp_path / "saved")
    again = pxp.load(tmp_path / "saved")
    assert again.pxp_origin.name == "timm:vit_tiny_patch16_224" and again.pxp_origin.preprocess.input_size == (
        3,
        32,
        32,
    )
    same(model, again, torch.randn(2, 3, 32, 32))
    with pytest.raises(pxp.PxpError, match="nothing says how this ResNet is built"):
        pxp.save(torchvision.models.resnet18(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_slimming_what_was_saved_goes_on_from_there(tmp_path):
    small, images, plan = slimmed("vgg", 0.3)
    pxp.save(small, tmp_path / "one", plan=plan)
    loaded = models.load(f"pxp:{tmp_path / 'one'}")
    assert loaded.weights == "saved" and loaded.num_classes == 10
    scores = pxp.score(loaded.model, criterion="random", example=images, model_name=loaded.name)
    second = pxp.plan(scores, 0.3)
    smaller = pxp.slim(loaded.model, second, images)
    pxp.save(smaller, tmp_path / "two", plan=second, class_names=list("abcdefghij"))
    again = pxp.load(tmp_path / "two")
    same(smaller, again, images)
    assert again.pxp_origin.name == "demo:vgg" and again.pxp_origin.plans == (plan, second)
    assert again.pxp_origin.class_names == tuple("abcdefghij")
    assert "In 2 steps" in (tmp_path / "two" / "README.md").read_text()


def patched(model):
    model.forward = lambda x: x.mean((2, 3))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (patched, "the forward of the model was replaced"),
        (
            lambda m: setattr(m, "relu", nn.Tanh()),
            "relu is a torch.nn.modules.activation.Tanh, but its constructor makes a .*ReLU",
        ),
        (lambda m: m.add_module("extra", nn.Linear(2, 2)), "has a module extra .* that its constructor does not make"),
        (lambda m: delattr(m, "fc"), "lacks the module fc"),
        (lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1))), "no gain, and no place for it"),
        (lambda m: prune.l1_unstructured(m.fc, "weight", 0.5), "no fc.weight_orig, and no place for it"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(change, complaint, tmp_path):
    model = torchvision.models.resnet18(num_classes=4).eval()
    change(model)
    with pytest.raises(pxp.PxpError, match=complaint):
        pxp.save(model, tmp_path / "saved", name="torchvision:resnet18")
    assert not list(tmp_path.iterdir())


class Doubled(nn.Module):
    """Doubles its logits by something that is neither a tensor nor a number of a module."""

    pxp_input = {"input_size": (3, 8, 8)}

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.by = {"factor": 1.0}

    def forward(self, x):
        return self.head(x.mean((2, 3))) * self.by["factor"]


def test_what_computes_something_else_when_read_again_is_not_saved(tmp_path):
    model = Doubled().eval()
    pxp.save(model, tmp_path / "saved", name=f"{__name__}:Doubled")
    kept = (tmp_path / "saved" / "pxp.json").read_bytes()
    model.by["factor"] = 2.0
    with pytest.raises(pxp.PxpError, match=r"computes something else \(logits differ by 5.0e-01 of the largest\)"):
        pxp.save(model, tmp_path / "saved", name=f"{__name__}:Doubled")
    assert (tmp_path / "saved" / "pxp.json").read_bytes() == kept and len(list(tmp_path.iterdir())) == 1


def test_timm_loads_what_is_as_wide_as_its_own(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6)
    images, _ = pictures(2, 64)
    randomise(model, images)
    names, accuracy = [f"kind {i}" for i in range(6)], {"unpruned": Hits(correct=40, total=50)}
    pxp.save(model, tmp_path / "hub", class_names=names, accuracy=accuracy)
    assert {f.name for f in (tmp_path / "hub").iterdir()} == {
        "config.json",
        "model.safetensors",
        "pxp.json",
        "README.md",
    }
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    same(model, again, images)
    assert again.num_classes == 6 and json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == names
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "library_name: timm" in card and "| unpruned | 80.00\u202f% | 67\u202f% to 88.8\u202f% | 50 |" in card
    loaded = models.load(f"timm:local-dir:{tmp_path / 'hub'}", weights="pretrained")
    pxp.save(loaded.model, tmp_path / "again")
    assert pxp.load(tmp_path / "again").pxp_origin.name == "timm:test_resnet"


def test_the_card_says_what_was_cut(tmp_path):
    small, images, plan = slimmed("resnet, bottleneck", 0.5)
    pxp.save(small, tmp_path / "small", plan=plan, example=images)
    card, slim = (tmp_path / "small" / "README.md").read_text(), small.pxp_slim
    assert f"| parameters | {slim.before.parameters:,} | {slim.after.parameters:,} |" in card
    assert f"{slim.cut:,} are cut out, {slim.zeros:,} stay as zeros" in card
    assert "library_name: pxp_fast" in card and 'pxp_fast.load("path/to/this/folder")' in card
    for layer in slim.layers:
        assert f"| {layer.name} | {layer.kind} | {layer.count} | {layer.cut} | {layer.removed - layer.cut} |" in card


INTERRUPTED = """
import ctypes, os, shutil, signal, sys
import torch
torch.set_num_threads(1)
import pxp_fast as pxp
from pxp_fast import models

folder = sys.argv[1]
target, previous = os.path.join(folder, "saved"), os.path.join(folder, ".saved.previous")
kept = folder + "-kept"
model = models.load("demo:vit").model
events, last = 0, None

def look(event, arguments):
    global events
    if last is not None and any(isinstance(a, (str, os.PathLike)) and str(a).startswith(folder) for a in arguments):
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)

def save(value):
    with torch.no_grad():
        model.head.bias[0] = value
    pxp.save(model, target)

def content(path):
    return {name: open(os.path.join(path, name), "rb").read() for name in sorted(os.listdir(path))}

def kill_everywhere():
    global last
    save(1)
    new = content(target)
    save(0)
    old = content(target)
    assert old != new and pxp.load(target).head.bias[0] == 0
    shutil.copytree(target, kept)
    found, step = {"old": 0, "new": 0, "named": 0}, 0
    while True:
        step += 1
        child = os.fork()
        if not child:
            last = step
            save(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.path.exists(target):
            try:
                pxp.load(target)
            except pxp.PxpError as error:
                assert previous in str(error), error
            os.rename(previous, target)
            assert content(target) == old
            found["named"] += 1
        else:
            which = "old" if content(target) == old else "new"
            assert which == "old" or content(target) == new
            found[which] += 1
        if not os.WIFSIGNALED(status):
            assert status == 0 and which == "new"
            return found
        for name in os.listdir(folder):
            shutil.rmtree(os.path.join(folder, name))
        shutil.copytree(kept, target)

sys.addaudithook(look)
found = kill_everywhere()
assert found["old"] > 10 and found["new"] > 0 and not found["named"], found
shutil.rmtree(kept)
# Where two folders cannot be exchanged in one step, there is a moment without either; then the old one is named.
ctypes.CDLL = lambda *a, **k: (_ for _ in ()).throw(OSError("no such library"))
found = kill_everywhere()
assert found["old"] > 10 and found["new"] > 0 and found["named"] > 0, found
"""


def test_a_save_killed_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "folder")]
    (tmp_path / "folder").mkdir()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    model, _, _, _ = network("vgg")
    (tmp_path / "here").mkdir()
    pxp.save(model, tmp_path / "here", name="demo:vgg")
    (tmp_path / "here" / "notes.txt").write_text("mine")
    with pytest.raises(pxp.PxpError, match=r"it holds other things \(notes.txt\), which would be lost"):
        pxp.save(model, tmp_path / "here", name="demo:vgg")
    with pytest.raises(pxp.PxpError, match="it is a file; give a folder"):
        pxp.save(model, tmp_path / "here" / "notes.txt", name="demo:vgg")
    assert (tmp_path / "here" / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "argument", [{"checkpoint_path": "x.pth"}, {"pretrained": True}, {"pretrained_cfg_overlay": {"file": "x"}}]
)
def test_arguments_about_weights_are_refused(argument, tmp_path):
    model = network("resnet, bottleneck")[0]
    with pytest.raises(pxp.PxpError, match=f"the argument {next(iter(argument))} of timm:test_resnet is about weights"):
        pxp.save(model, tmp_path / "saved", name="timm:test_resnet", arguments=argument)


def test_arguments_that_json_does_not_know_are_refused(tmp_path):
    model = network("resnet, bottleneck")[0]
    with pytest.raises(pxp.PxpError, match="cannot be written as JSON"):
        pxp.save(model, tmp_path / "saved", name="timm:test_resnet", arguments={"act_layer": nn.ReLU})

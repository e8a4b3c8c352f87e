"""Exported networks: other runtimes give the network's logits, at any batch size, or there is no file."""

import sys

import onnxruntime
import pytest
import torch
from small_families import logits, network, slimmed
from torch import nn

import pxp_fast as pxp


def run_onnx(path, images):
    """By ONNX Runtime in a process of its own, which knows nothing of PyTorch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize(
    "family, rate",
    [("vgg", 0.2), ("vgg", 0.9), ("resnet, basic", 0.5), ("vit", 0.5), ("swin", 0.3), ("densenet", 0.6)],
)
def test_onnx_gives_the_logits_of_the_slimmed_network(family, rate, tmp_path):
    small, images, _ = slimmed(family, rate)
    error = pxp.export_onnx(small, images, tmp_path / "small.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["small.onnx"]
    for count in (1, 5):
        fresh = torch.randn(count, *images.shape[1:], generator=torch.Generator().manual_seed(count))
        expected, found = logits(small, fresh), run_onnx(tmp_path / "small.onnx", fresh)
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert 0 <= error <= 1e-4


@pytest.mark.parametrize("family, rate", [("vgg", 0.5), ("vit", 0.5), ("swin of timm", 0.3)])
def test_exported_programs_give_the_logits_of_the_slimmed_network(family, rate, tmp_path):
    small, images, _ = slimmed(family, rate)
    small.train()
    pxp.export_torch(small, images[:1], tmp_path / "small.pt2")
    assert small.training and [f.name for f in tmp_path.iterdir()] == ["small.pt2"]
    small.eval()
    program = torch.export.load(tmp_path / "small.pt2").module()
    fresh = torch.randn(5, *images.shape[1:])
    torch.testing.assert_close(program(fresh), small(fresh), rtol=1e-5, atol=1e-5)


class Tiny(nn.Module):
    """So small that it compiles soon."""

    pxp_input = {"input_size": (3, 8, 8)}

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


def test_a_compiled_slimmed_network_gives_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    model, images = Tiny().eval(), torch.randn(2, 3, 8, 8)
    plan = pxp.plan(pxp.score(model, criterion="random", example=images), 0.5)
    small = pxp.slim(model, plan, images)
    assert small.stem.out_channels == 4
    compiled = torch.compile(small, fullgraph=True)
    torch.testing.assert_close(logits(compiled, images), logits(small, images), rtol=1e-4, atol=1e-6)
    pxp.save(compiled, tmp_path / "small", name=f"{__name__}:Tiny", plan=plan)
    assert torch.equal(logits(pxp.load(tmp_path / "small", trust=True), images), logits(small, images))


class Random(nn.Module):
    """Gives other logits at every call."""

    def forward(self, x):
        return torch.rand(x.shape[0], 4) + x.mean((1, 2, 3))[:, None]


class Fixed(nn.Module):
    """Takes no other number of images than two."""

    def forward(self, x):
        return torch.ones(2, 2) @ x.mean((2, 3))


class Branching(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


@pytest.mark.parametrize("export", [pxp.export_onnx, pxp.export_torch])
@pytest.mark.parametrize(
    "model, complaint",
    [
        (Random(), "gives other logits than the model: they differ by .* nothing was written"),
        (Fixed(), "cannot be exported to|the model does not take 1 images"),
        (Branching(), "cannot be exported to"),
    ],
)
def test_what_computes_something_else_leaves_no_file(export, model, complaint, tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(pxp.PxpError, match=complaint):
        export(model.eval(), torch.rand(2, 3, 4, 4), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_examples_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(pxp.PxpError, match=r"the example is \[3, 28, 28\]; expected images"):
        pxp.export_onnx(network("vgg")[0], torch.rand(3, 28, 28), tmp_path / "x")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_missing_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(pxp.PxpError, match=rf"ONNX files need {package} .*pip install 'pxp_fast\[export\]'"):
        pxp.export_onnx(network("vgg")[0], torch.rand(2, 1, 28, 28), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())

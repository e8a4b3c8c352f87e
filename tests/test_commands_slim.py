"""``pxp-fast slim`` and ``export``, and networks that they saved wherever a network is named."""

import json

import onnxruntime
import pytest
import torch
from pictures_on_disk import coloured_folder, write_module
from small_families import logits
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast import models
from pxp_fast.cli import app


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with images and a module of networks."""
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 4)
    return tmp_path, write_module(tmp_path)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words) -> str:
    outcome = invoke(*words)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_slim_export_and_the_smaller_network_again(place):
    folder, _ = place
    data = ("--data", "demo", "--device", "cpu", "--samples-per-class", 2)
    done("score", "demo:vgg", *data, "--out", "scores")
    done("plan", "scores", "--rate", 0.5)
    output = done("slim", "demo:vgg", "--plan", "scores", "--out", "small")
    model, plan = models.load("demo:vgg").model, pxp.Plan.load(folder / "scores" / "plan.json")
    small = pxp.load(folder / "small")
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    with pxp.masked(model, plan):
        expected = logits(model, images)
    assert float((logits(small, images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    slim = small.pxp_slim
    assert f"parameters: {before:,} -> {after:,} ({after / before - 1:+.1%})\n" in output
    assert f"FLOPs: {slim.before.flops:,} -> {slim.after.flops:,}" in output
    assert f"units: {plan.removed_count:,} of {plan.total_count:,} removed; {slim.cut:,} cut out" in output
    assert f"{slim.zeros:,} stay as zeros" in output and output.endswith("small\n")

    output = done("export", "small", "--to", "onnx", "--out", "net")
    assert f"net.onnx: {(folder / 'net.onnx').stat().st_size:,} bytes" in output
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, logits(small, images), rtol=1e-4, atol=1e-4)
    done("export", "small", "--to", "torch", "--out", "net.pt2")
    torch.testing.assert_close(torch.export.load("net.pt2").module()(images), logits(small, images))

    pruned = done("eval", "demo:vgg", *data, "--plan", "scores").split("removed: ")[1]
    assert done("eval", "pxp:small", *data).split("unpruned: ")[1] == pruned
    done("score", "pxp:small", *data, "--out", "again")
    done("plan", "again", "--rate", 0.3)
    done("slim", "pxp:small", "--plan", "again/plan.json", "--out", "small")
    assert len(pxp.load("small").pxp_origin.plans) == 2


def test_a_constructor_of_ones_own_and_its_arguments(place):
    folder, module = place
    name, given = f"{module}:classifier", ("--checkpoint-kwargs", '{"width": 9}')
    common = ("--data", "images", "--device", "cpu", "--samples-per-class", 1, "--out", "scores")
    done("score", name, *common, *given)
    done("plan", "scores", "--rate", 0.5)
    done("slim", name, "--plan", "scores", "--out", "small", *given)
    content = json.loads((folder / "small" / "pxp.json").read_text())
    assert content["architecture"] == name and content["arguments"] == {"width": 9}
    for words in (
        ("export", "small", "--to", "torch", "--out", "x"),
        ("slim", "pxp:small", "--plan", "scores", "--out", "x"),
    ):
        outcome = invoke(*words)
        assert outcome.exit_code == 1 and f"is built by {name}, code that is not pxp_fast's" in outcome.stderr
    done("export", "small", "--to", "torch", "--out", "x", "--trust")
    trusted = ("--checkpoint-kwargs", '{"trust": true}')
    assert "images right" in done("eval", "pxp:small", "--data", "images", "--device", "cpu", *trusted)


@pytest.mark.parametrize(
    "words, status, complaint",
    [
        (("slim", "demo:vit", "--plan", "plan.json", "--out", "x"), 1, "for model 'demo:vgg', not for 'demo:vit'"),
        (("slim", "demo:vgg", "--plan", "nothing", "--out", "x"), 1, "there is no plan nothing"),
        (("slim", "demo:vgg", "--plan", "plan.json", "--out", "images"), 1, "it holds other things (0, 1, 2)"),
        (("slim", "demo:vgg", "--plan", "plan.json"), 2, "--out"),
        (("slim", "pxp:images", "--plan", "plan.json", "--out", "x"), 1, "images is no saved model"),
        (("eval", "pxp:nothing", "--data", "images"), 1, "there is no saved model nothing"),
        (("eval", "pxp:x", "--data", "images", "--weights", "pretrained"), 1, "has its weights and arguments"),
        (("export", "nothing", "--to", "onnx", "--out", "x"), 1, "there is no saved model nothing"),
        (("export", "nothing", "--to", "coreml", "--out", "x"), 2, "coreml"),
    ],
)
def test_what_stands_in_the_way(place, words, status, complaint):
    model = models.load("demo:vgg").model
    scores = pxp.score(model, criterion="random", example=torch.zeros(1, 1, 28, 28), model_name="demo:vgg")
    pxp.plan(scores, 0.5).save("plan.json")
    outcome = invoke(*words)
    assert outcome.exit_code == status and complaint in " ".join(outcome.stderr.split()), outcome.stderr
    assert not (place[0] / "x").exists()

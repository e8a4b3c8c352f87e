"""``pxp-fast finetune``, and ``--repair`` wherever a network becomes smaller."""

import json
import re

import pytest
import torch
from small_families import logits
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast import demo, models
from pxp_fast.cli import app
from pxp_fast.data import demo_images
from pxp_fast.loader import Loader


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a plan for the demo's VGG."""
    monkeypatch.chdir(tmp_path)
    model = demo.network("vgg")
    scores = pxp.score(model, criterion="random", example=torch.zeros(1, 1, 28, 28), model_name="demo:vgg")
    pxp.plan(scores, 0.4).save(tmp_path / "plan.json")
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words) -> str:
    outcome = invoke(*words)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def failed(*words, status=1) -> str:
    outcome = invoke(*words)
    assert outcome.exit_code == status, outcome.output
    return " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.output).split())


def test_a_repaired_network_is_saved(place):
    repairing = ("--repair", "ridge", "--data", "demo", "--repair-images", 60)
    output = done("slim", "demo:vgg", "--plan", "plan.json", "--out", "small", *repairing)
    model, plan = demo.network("vgg"), pxp.Plan.load(place / "plan.json")
    small = pxp.load(place / "small")
    images = demo.normalize(demo.images("test")[0][::10])
    whole = logits(model, images)
    with pxp.masked(model, plan):
        pruned = logits(model, images)
    assert (logits(small, images) - whole).square().mean() < 0.3 * (pruned - whole).square().mean()
    assert re.search(r"\d+ layers refitted by ridge regression, on 60 images", output)
    assert "--data DIR" in failed("slim", "demo:vgg", "--plan", "plan.json", "--out", "b", "--repair", "mean")


def test_a_run_repairs(place):
    common = ("demo:vgg", "--data", "demo", "--samples-per-class", 5, "--eval-samples-per-class", 20, "--rate", 0.4)
    common += ("--criterion", "random", "--random-seeds", 0, "--heatmaps", 0)
    done("run", *common, "--repair", "ridge", "--repair-images", 40, "--out", "out")
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["after"]["correct"] > results["slimmed"]["masked"]["correct"]
    assert any("on 40 images" in note for note in results["notes"])
    assert "--repair ridge" in results["command"]
    assert "leave --no-slim or --repair out" in failed("run", *common, "--repair", "mean", "--no-slim", status=2)


def test_a_network_is_made_smaller_repaired_tuned_and_saved_and_an_interrupted_one_goes_on(place):
    words = ("finetune", "demo:vgg", "--plan", ".", "--data", "demo", "--eval-samples-per-class", 20)
    words += ("--repair", "mean", "--epochs", 2, "--lr", 1e-3, "--batch-size", 100, "--device", "cpu")
    output = done(*words, "--out", "tuned")
    accuracy = re.search(r"accuracy: ([\d.]+)% -> ([\d.]+)%, after epoch (\d) of 2", output)
    assert float(accuracy[2]) > float(accuracy[1]) + 5
    tuned = models.load("pxp:tuned")
    chosen = demo_images("test", model=tuned, samples_per_class=20)
    assert pxp.evaluate(tuned.model, Loader(chosen)).accuracy == pytest.approx(float(accuracy[2]) / 100, abs=1e-4)
    assert "going on after epoch 2 of 2" in done(*words, "--out", "tuned")
    assert "another fine-tuning (lr 0.001 instead of 0.002)" in failed(*words, "--lr", 2e-3, "--out", "tuned")
    output = done("finetune", "pxp:tuned", "--data", "demo", "--epochs", 1, "--lr", 1e-4, "--out", "again")
    assert output.endswith("again\n")
    assert "timm knows no optimizer" in failed(*words, "--optimizer", "none", "--out", "c")

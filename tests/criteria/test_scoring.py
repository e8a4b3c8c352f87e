"""Every criterion through the scorer, the planner, a recorded step and the command line."""

import json

import pytest
import torch
from criteria_networks import batch, cnn, vit
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast.cli import app
from pxp_fast.criteria import CRITERIA, NAMES, Step, criterion
from pxp_fast.criteria.registry import needs_images
from pxp_fast.results import Results

SEEING = [name for name in CRITERIA if needs_images(name)]


def batches(*sizes):
    images, labels = batch(sum(sizes))
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


class Traced:
    """Records operators on tensors, as a CUDA graph does: what the host reads is refused, what it decides is frozen."""

    def record(self, compute):
        return make_fx(compute)()


@pytest.mark.parametrize(("name", "network"), [*((name, vit) for name in SEEING), ("taylor", cnn)])
def test_a_recorded_step_gives_the_totals_of_a_plain_one(name, network):
    found = criterion(name, network(), batch()[0])
    totals = []
    for recorder in (None, Traced()):
        step = Step(found, recorder=recorder)
        for images, labels in batches(3, 3, 3, 2, 1):
            step(images, labels)
        totals.append(step.totals)
    torch.testing.assert_close(*totals, rtol=1e-9, atol=1e-14)
    assert totals[0].any()


@pytest.mark.parametrize(("name", "network"), [*((name, cnn) for name in NAMES), ("taylor", vit), ("magnitude", vit)])
def test_the_model_is_left_as_it_was_and_the_scores_make_plans(name, network):
    model = network()
    next(model.children()).train()  # flags are each module's own
    parameter = next(model.parameters())
    parameter.requires_grad_(False)
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [(module.training, len(module._forward_hooks), len(module._backward_hooks)) for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    with torch.inference_mode():
        scores = pxp.score(model, batches(3, 2), criterion=name, per_class=True)
    again = pxp.score(model, batches(3, 2), criterion=name, per_class=True)
    assert torch.equal(scores.totals, again.totals)
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
    assert flags == [(m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert scores.header.criterion == name and (scores.header.composite != {}) == (name in ("lrp", "combination"))
    plan = pxp.plan(scores, 0.5)
    assert plan.removed_count == sum(
        sum(g.count for g in scores.units if g.kind == kind) // 2 for kind in {g.kind for g in scores.units}
    )
    before = pxp.evaluate(model, batches(3, 2))
    with pxp.masked(model, plan):
        pxp.evaluate(model, batches(3, 2))
    assert pxp.evaluate(model, batches(3, 2)) == before


@pytest.mark.parametrize("name", SEEING)
def test_a_score_that_is_not_finite_is_an_error_that_names_the_layer(name):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    with torch.no_grad():
        model[1].weight.fill_(3e38)
    images = 3e38 * torch.ones(2, 3, 8, 8)
    what = "relevance of" if name == "lrp" else rf"the score \({name}\) of"
    with pytest.raises(pxp.PxpError, match=rf"{what} \d is not finite in \d of 4 filters"):
        pxp.score(model, [(images, torch.tensor([0, 1]))], criterion=name)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_by_another_criterion_says_so_everywhere(tmp_path):
    options = '{"of": "loss"}'
    asked = ["run", "demo:resnet", "--data", "demo", "--criterion", "taylor", "--criterion-options", options]
    few = ["--samples-per-class", 2, "--eval-samples-per-class", 2, "--random-seeds", 0, "--heatmaps", 0]
    done = invoke(*asked, *few, "--forget-classes", "3,4", "--rate", 0.1, "--out", tmp_path, "--no-slim")
    assert done.exit_code == 0, done.output
    scores = pxp.Scores.load(tmp_path / "scores.safetensors")
    assert (scores.header.criterion, scores.header.criterion_options) == ("taylor", {"of": "loss"})
    plan = pxp.Plan.load(tmp_path / "plan.json")
    assert plan == pxp.plan(scores.contrast(forget=[3, 4]), 0.1)
    assert plan != pxp.plan(scores, 0.1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>demo:resnet: pruned by taylor</title>" in page
    assert "Units were scored by taylor on 20 images and accuracy was measured on 20 others." in page
    found = Results.load(tmp_path / "results.json")
    assert "--criterion taylor" in found.command and "--forget-classes 3,4" in found.command
    assert f"--criterion-options '{options}'" in found.command

    done = invoke("plan", tmp_path, "--rate", 0.1, "--keep-classes", "0,1", "--forget-classes", 3)
    assert done.exit_code == 0, done.output
    assert pxp.Plan.load(tmp_path / "plan.json") == pxp.plan(scores.contrast([0, 1], [3]), 0.1)
    judged = ["--data", "demo", "--samples-per-class", 1, "--device", "cpu"]
    done = invoke("sweep", "demo:resnet", tmp_path, *judged, "--forget-classes", 3, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    curve = json.loads((tmp_path / "sweep.json").read_text())["curve"]
    assert curve["removed"][2] == pxp.plan(scores, 0.1).removed_count
    for words, complaint in (
        (("--keep-classes", "0,x"), "not by names such as 'x'"),
        (("--classes", "0", "--keep-classes", "0"), "--classes and --keep-classes say the same"),
    ):
        done = invoke("plan", tmp_path, *words)
        assert done.exit_code and complaint in " ".join(done.stderr.replace("│", " ").split())


def test_a_criterion_without_images_scores_from_the_command_line(tmp_path):
    done = invoke("score", "demo:vit", "--data", "demo", "--criterion", "magnitude", "--out", tmp_path)
    assert done.exit_code == 0 and "no images needed by magnitude" in done.output
    assert pxp.Scores.load(tmp_path / "scores.safetensors").samples == 0
    for words, complaint in (
        (("--criterion", "tailor"), "criterion 'tailor' is not known"),
        (("--criterion", "taylor", "--criterion-options", '{"off": 1}'), "criterion taylor has no option off"),
    ):
        done = invoke("score", "demo:vit", "--data", "demo", *words)
        assert done.exit_code == 2 and complaint in " ".join(done.stderr.replace("│", " ").split())

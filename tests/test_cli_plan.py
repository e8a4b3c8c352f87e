"""``plan`` and ``run`` with budgets, steps and removable units, beside the library's own answers."""

import re

import pytest
import torch
from pictures_on_disk import coloured_folder, write_module
from test_cli import invoke
from test_plan import removed

import pxp_fast as pxp
from pxp_fast.demo import network
from pxp_fast.results import Results


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores of a network that comes with the package."""
    folder = tmp_path_factory.mktemp("scored")
    outcome = invoke("score", "demo:resnet", "--data", "demo", "--out", folder, "--criterion", "magnitude")
    assert outcome.exit_code == 0, outcome.output
    return folder


def planned(scored, out, *words):
    outcome = invoke("plan", scored, "--out", out, *words)
    assert outcome.exit_code == 0, outcome.output
    return pxp.Plan.load(out / "plan.json", "demo:resnet"), outcome.output


def test_a_plan_for_a_budget_takes_the_network_that_scored(scored, tmp_path):
    found, output = planned(scored, tmp_path, "--units", "removable", "--scope", "isomorphic", "--budget-flops", 0.5)
    scores, example = pxp.Scores.load(scored / "scores.safetensors"), torch.randn(2, 1, 28, 28)
    options = {"units": "removable", "scope": "isomorphic", "flops": 0.5, "clock": False}
    expected = pxp.plan_for(network("resnet"), scores, example, **options)
    assert removed(found) == removed(expected.plan) and found.budget == "flops 0.5"
    for line in expected.achieved.lines()[1:]:
        assert line in output
    assert re.search(r"latency: [\d.]+ -> [\d.]+ ms at batch 1 \(", output)
    again, _ = planned(scored, tmp_path, "--units", "removable", "--scope", "isomorphic", "--budget-flops", 0.5,
                       "--model", "demo:resnet", "--batch", 2)  # fmt: skip
    assert again == found


def test_a_plan_by_rate_still_needs_scores_alone(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("pxp_fast.models.load", None)
    found, output = planned(scored, tmp_path, "--rate", 0.5, "--scope", "layer", "--round-to", "auto")
    assert "latency" not in output
    assert all((group.count - len(group.removed)) % 8 == 0 for group in found.groups)
    assert removed(found) == removed(
        pxp.plan(pxp.Scores.load(scored / "scores.safetensors"), 0.5, scope="layer", round_to=8)
    )


def test_a_drop_is_judged_on_images(scored, tmp_path):
    found, output = planned(scored, tmp_path, "--max-drop", 0.1, "--data", "demo", "--eval-samples-per-class", 5)
    before, after, drop = map(
        float, re.search(r"accuracy: ([\d.]+)% -> ([\d.]+)% .*\((-?\+?[\d.]+)%\)", output).groups()
    )
    assert drop >= -10 and after >= before - 10 and found.removed_count > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget-flops", 0.5, "--budget-params", 0.5), "params and flops given; give one of"),
        (("--budget-flops", 1e-9), "cannot be reached: the nearest is"),
        (("--budget-flops", 0.5, "--model", "demo:vgg"), "scores are of model 'demo:resnet', not of 'demo:vgg'"),
        (("--max-drop", 0.1), "give their folder with --data"),
    ],
)
def test_what_stands_in_the_way_of_a_plan(scored, tmp_path, words, message):
    outcome = invoke("plan", scored, "--out", tmp_path, *words)
    assert outcome.exit_code == 1 and message in outcome.output


@pytest.mark.parametrize(
    "words", [("--budget-latency", "fast"), ("--round-to", "0"), ("--max-drop", "2"), ("--scope", "x")]
)
def test_what_is_no_plan_is_a_wrong_command_line(scored, words):
    outcome = invoke("plan", scored, *words)
    assert outcome.exit_code == 2 and words[0] in outcome.output


def test_a_run_in_steps_for_a_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 6)
    words = ("--data", "images", "--samples-per-class", 2, "--random-seeds", 0, "--heatmaps", 0, "--device", "cpu")
    outcome = invoke("run", f"{write_module(tmp_path)}:classifier", *words, "--units", "removable", "--budget-params",
                     0.6, "--steps", 2)  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    found = Results.load(tmp_path / "out" / "results.json")
    plan = pxp.Plan.load(tmp_path / "out" / "plan.json")
    assert (plan.removable, plan.budget, found.removed) == (True, "params 0.6", plan.removed_count)
    assert found.rate == plan.rate > 0
    before, after = map(int, re.search(r"parameters: (\d+) -> (\d+)", outcome.output).groups())
    assert before == 6 * 28 + 3 * 7 and after == before - plan.removed_count * 31 <= 0.6 * before
    first, last = (pxp.Scores.load(tmp_path / "out" / f"{name}.safetensors") for name in ("scores", "scores-last"))
    gone = last.values() == 0
    assert not bool((first.values() == 0).any()) and 0 < int(gone.sum()) < plan.removed_count
    assert all(bool(~group.kept()[gone].any()) for group in plan.groups)

"""Tasks and studies of the reference set on the command line: each beside the library, or worked out a second time."""

import dataclasses
import json

import pytest
import torch
from pictures_on_disk import coloured_folder, write_module
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast.cli import app
from pxp_fast.data import image_folder, split
from pxp_fast.loader import Loader
from pxp_fast.models import load
from pxp_fast.results import Results
from pxp_fast.tuning.records import Tuning


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with images and a module of networks."""
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 8)
    return tmp_path, f"{write_module(tmp_path)}:classifier"


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def output(*words) -> str:
    step = invoke(*words)
    assert step.exit_code == 0, step.output
    return step.stdout


def test_scores_of_every_image_answer_for_the_paths_they_name(place):
    folder, network = place
    said = output("score", network, "--data", "images", "--samples-per-class", 3, "--per-sample", "--device", "cpu")
    assert "9 images scored\nthe scores of every image take 0.0 MB of it\nout/scores.safetensors" in said
    scores = pxp.Scores.load(folder / "out" / "scores.safetensors")
    paths, loaded = scores.header.data["paths"], load(network)
    images = image_folder(folder / "images", model=loaded)
    by_path = {str(s.path.relative_to(folder / "images")): i for i, s in enumerate(images.samples)}
    pixels, labels = next(iter(Loader(images, batch_size=24)))
    for position in (0, 4, 8):
        own = by_path[paths[position]]
        alone = pxp.score(loaded.model, [(pixels[own][None], labels[own][None])])
        found = scores.for_samples([position])
        torch.testing.assert_close(found.totals, alone.totals, rtol=1e-5, atol=1e-9)
        assert found.header.data["paths"] == [paths[position]]
    found = output("plan", "out", "--rate", 0.5, "--classes", 2)
    assert "3 of 6 units to remove" in found


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--keep-classes", "0,1", "--forget-classes", "1"], "classes [1] are both to be kept and to be forgotten"),
        (["--forget-classes", "1", "--criterion", "magnitude"], "scores by magnitude are from no images"),
        (
            ["--keep-classes", "1", "--criterion", "combination", "--criterion-options", '{"how": "rank"}'],
            "ranks in one",
        ),
        (["--forget-classes", "1", "--until-stable", "0.3"], "--until-stable watches the plan from all classes"),
        (["--forget-classes", "7"], "no images of the classes [7] score: keep and forget some of 0, 1, 2"),
        (["--forget-classes", "0,1,2"], "classes [0, 1, 2] are all that have images, so none is left to be kept"),
        (["--task-classes", "2", "--task-seed", "5", "--keep-classes", "1"], "no images of the classes [1] score"),
    ],
)
def test_classes_that_no_plan_can_be_made_from_are_refused_before_anything_is_scored(place, words, complaint):
    folder, network = place
    found = invoke("run", network, "--data", "images", "--device", "cpu", "--samples-per-class", 2, *words)
    assert found.exit_code in (1, 2) and complaint in " ".join(found.output.replace("│", " ").split())
    assert not (folder / "out" / "scores.safetensors").exists()


def test_classes_kept_of_a_task_go_by_their_labels(place):
    """The task's classes are 0 and 2, which the sliced network calls 0 and 1."""
    folder, network = place
    words = [network, "--data", "images", "--device", "cpu", "--samples-per-class", 2, "--task-classes", 2]
    words += ["--task-seed", 5, "--per-class"]
    output("score", *words)
    scores = pxp.Scores.load(folder / "out" / "scores.safetensors")
    assert scores.header.data["task"]["classes"] == [0, 2]
    output("run", *words, "--keep-classes", 2, "--out", "run", "--heatmaps", 0, "--random-seeds", 0, "--rate", 0.5)
    plan = pxp.Plan.load(folder / "run" / "plan.json")
    alone = dataclasses.replace(scores, totals=scores.class_totals[1])
    assert plan.groups[0].removed == pxp.plan(alone, 0.5).groups[0].removed
    output("plan", "out", "--keep-classes", 2, "--rate", 0.5)
    assert pxp.Plan.load(folder / "out" / "plan.json").groups == plan.groups


def test_stability_prints_and_writes_what_the_library_says(place):
    folder, network = place
    output("score", network, "--data", "images", "--samples-per-class", 5, "--per-sample", "--device", "cpu")
    said = output("stability", "out", "--rate", 0.5, "--seeds", 3, "--sizes", "1,4")
    found = pxp.stability(pxp.Scores.load(folder / "out" / "scores.safetensors"), 0.5, [1, 4], 3)
    assert json.loads((folder / "out" / "stability.json").read_text()) == found.describe()
    assert "svg" in (folder / "out" / "stability.svg").read_text()
    rows = [line.split() for line in said.splitlines() if line.split()[:2] in (["1", "3"], ["4", "12"])]
    assert [float(row[2]) for row in rows] == [round(size.mean, 3) for size in found.overlap]
    assert " to " not in said and "20 sets of each size make an interval; 3 were asked for" in said
    said = output("stability", "out", "--rate", 0.5, "--seeds", 20, "--sizes", "1,4")
    found = pxp.stability(pxp.Scores.load(folder / "out" / "scores.safetensors"), 0.5, [1, 4], 20)
    for size in (*found.overlap, *found.tau):
        assert f"{size.mean:.3f} ({size.low:.3f} to {size.high:.3f})" in said
    assert "20 sets of each size, drawn from the 15 images with replacement" in said
    assert invoke("stability", "out", "--rate", 0.5, "--sizes", "1,none").exit_code == 2
    step = invoke("stability", "out", "--rate", 0.5, "--sizes", 6)
    assert step.exit_code == 1 and "choose from 1 ... 5" in step.stderr
    output("score", network, "--data", "images", "--samples-per-class", 2, "--device", "cpu", "--out", "without")
    step = invoke("stability", "without")
    assert step.exit_code == 1 and "pxp-fast score --per-sample" in step.stderr


def test_a_task_prunes_and_judges_its_classes_alone(place):
    folder, network = place
    common = (network, "--data", "images", "--device", "cpu")
    task = ("--task-classes", 2, "--task-seed", 1)
    output("score", *common, "--samples-per-class", 3, *task)
    scores = pxp.Scores.load(folder / "out" / "scores.safetensors")
    expected = pxp.random_task(3, 2, 1)
    assert scores.header.data["task"] == {"classes": list(expected.classes), "mode": "slice"}
    named = ",".join(map(str, expected.classes))
    output("score", *common, "--samples-per-class", 3, "--classes", named, "--task-mode", "slice", "--out", "named")
    again = pxp.Scores.load(folder / "named" / "scores.safetensors")
    assert torch.equal(again.totals, scores.totals) and again.header.data["paths"] == scores.header.data["paths"]

    output("plan", "out", "--rate", 0.5)
    plan = pxp.Plan.load(folder / "out" / "plan.json")
    model, loaded = load(network).model, load(network)
    loader = list(Loader(image_folder(folder / "images", model=loaded), batch_size=24))
    for mode in ("slice", "zero"):
        own = pxp.Task(expected.classes, mode)
        restricted = own.restrict(model, loader[0][0])
        with pxp.masked(restricted, plan):
            truth = pxp.evaluate(restricted, own.loader(loader))
        said = output("eval", *common, "--plan", "out", *task, "--task-mode", mode, "--per-class")
        assert f"({truth.correct} of 16 images right" in said and truth.total == 16
        for label in expected.classes:
            right, total = truth.per_class[own.label(label)]
            assert f"{label}: 100\u202f% -> {100 * right / total:.1f}".removesuffix(".0") in said
    said = output("sweep", network, "out", "--data", "images", "--device", "cpu")
    assert f"the scores are of a task of classes {list(expected.classes)}" in said
    assert "task" not in output("sweep", network, "out", "--data", "images", "--device", "cpu", *task)
    step = invoke("score", *common, "--task-classes", 4)
    assert step.exit_code == 1 and "a task of 4 classes is asked for; there are 3" in step.stderr


def test_a_run_of_a_task_that_stops_early_says_so(place):
    folder, network = place
    options = ("--samples-per-class", 6, "--batch-size", 2, "--random-seeds", 0, "--heatmaps", 1, "--device", "cpu")
    options += ("--until-stable", "0.5", "--stable-overlap", 0.3, "--classes", "2,0", "--task-mode", "slice")
    output("run", network, "--data", "images", "--rate", 0.5, *options)
    found = Results.load(folder / "out" / "results.json")
    assert found.task.classes == (0, 2) and found.task.mode == "slice"
    assert [(record.label, record.name) for record in found.classes] == [(0, "0"), (1, "2")]
    assert found.until_stable["stable"] and found.until_stable["images"] == found.reference.read < 12
    assert found.reference.images == 12
    assert any(note.startswith(f"Scoring stopped after {found.reference.read} of 12 images") for note in found.notes)
    assert "--until-stable 0.5" in found.command
    scores = pxp.Scores.load(folder / "out" / "scores.safetensors")
    labels = [path.split("/")[0] for path in scores.header.data["paths"]]
    assert len(labels) == found.reference.read and abs(labels.count("0") - labels.count("2")) <= 1
    page = (folder / "out" / "report.html").read_text()
    assert "classes 0, 2 of the whole network, its classifier sliced" in page and "for 2 classes alone" in page


def test_tasks_over_seeds_are_those_that_one_seed_at_a_time_gives(place):
    folder, network = place
    common = (network, "--data", "images", "--device", "cpu", "--samples-per-class", 2, "--task-classes", 2)
    said = output("tasks", *common, "--seeds", 4)
    record = json.loads((folder / "out" / "tasks.json").read_text())
    loaded = load(network)
    reference, judging = split(image_folder(folder / "images", model=loaded), reference_per_class=2)
    drawn = [pxp.random_task(3, 2, seed) for seed in range(4)]
    found = pxp.over_tasks(loaded.model, drawn, *([next(iter(Loader(part, 24)))] for part in (reference, judging)))
    assert [task["classes"] for task in record["tasks"]] == [list(task.classes) for task in drawn]
    assert record == found.describe()
    assert f"A_PR {found.a_pr}, Top-PR {found.top_pr}" in said
    assert (
        "over 4 tasks, 2 of them different" in said if len({t.classes for t in drawn}) == 2 else "over 4 tasks" in said
    )


def test_a_search_for_a_task_judges_its_classes_alone(place):
    folder, network = place
    (folder / "space.json").write_text(json.dumps({"rules": ["epsilon"], "softmax": ["epsilon"], "magnitude": [True]}))
    words = (network, "--data", "images", "--device", "cpu", "--samples-per-class", 2, "--space", "space.json")
    words += ("--trials", 2, "--task-classes", 2, "--task-seed", 1, "--cache", "shared")
    step = invoke("tune", *words)
    assert step.exit_code == 0, step.output
    assert "4 images score, 6 judge the trials, 6 are held out" in step.stderr
    found = Tuning.load(folder / "tune" / "tune.json")
    loaded, task = load(network), pxp.random_task(3, 2, 1)
    first, others = split(image_folder(folder / "images", model=loaded), reference_per_class=2)
    judging, held_out = split(others, reference_per_class=3)
    small = task.slice(loaded.model, torch.zeros(1, *loaded.input_size))
    scores = pxp.score(small, Loader(task.images(first), 24), composite=found.composite)
    curve = pxp.sweep(small, scores, Loader(task.images(held_out), 24))
    assert found.best.held_out.accuracies == curve.accuracies
    assert list((folder / "shared").rglob("*.safetensors")) and not (folder / "tune" / "cache").exists()
    page = (folder / "tune" / "tune.html").read_text()
    assert "--task-classes" in page and "--cache" in page

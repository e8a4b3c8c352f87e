"""The command line: each command's output checked against the library, and every way out of it."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures_on_disk import coloured_folder, write_module
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast.cli import app
from pxp_fast.results import Results

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with images and a module of networks."""
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 6)
    return tmp_path, write_module(tmp_path)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def process(*words, **options) -> subprocess.Popen:
    """The command in a process of its own, which hears an interrupt even where the tests run in the background."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pxp_fast", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options.setdefault("preexec_fn", functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, env=environment, **pipes, **options)


def test_score_plan_eval_sweep_and_report_are_the_steps_of_run(place):
    folder, module = place
    network = f"{module}:classifier"
    common = (network, "--data", "images", "--device", "cpu")
    few = ("--samples-per-class", 2, "--rate", 0.5, "--random-seeds", 1)
    whole = invoke("run", *common, "--out", "whole", *few, "--no-slim")
    assert whole.exit_code == 0, whole.output
    assert f"report: {folder / 'whole' / 'report.html'}" in whole.output

    step = invoke("score", *common, "--out", "steps", "--samples-per-class", 2)
    assert step.exit_code == 0, step.output
    assert "6 images scored\nsteps/scores.safetensors" in step.output
    ours, theirs = (pxp.Scores.load(folder / name / "scores.safetensors") for name in ("steps", "whole"))
    assert (ours.totals == theirs.totals).all()

    step = invoke("plan", "steps", "--rate", 0.5)
    assert step.exit_code == 0, step.output
    assert "3 of 6 units to remove\nsteps/plan.json" in step.output
    assert (folder / "steps" / "plan.json").read_bytes() == (folder / "whole" / "plan.json").read_bytes()

    found = Results.load(folder / "whole" / "results.json")
    step = invoke("sweep", network, "steps", "--data", "images", "--out", "steps", "--device", "cpu")
    assert step.exit_code == 0, step.output
    curve = json.loads((folder / "steps" / "sweep.json").read_text())
    assert curve["images"] == found.evaluation.images == 12
    assert curve["curve"] == json.loads(found.curve("least").model_dump_json())
    assert f"A_PR {found.curve('least').a_pr:.4f}" in step.output
    assert len(re.findall(r"^ *\d+%", step.output, flags=re.MULTILINE)) == 20

    step = invoke("eval", *common, "--classes", "0,2")
    assert step.exit_code == 0, step.output
    assert "accuracy unpruned: 100.00\u202f% (12 of 12 images right" in step.output
    step = invoke("eval", *common, "--plan", "steps/plan.json")
    assert "with 3 of 6 units removed" in step.output and "of 18 images right" in step.output

    before = (folder / "whole" / "report.html").read_bytes()
    step = invoke("report", "whole", "--out", "again.html")
    assert step.exit_code == 0, step.output
    assert (folder / "again.html").read_bytes() == before
    both = invoke("report", "whole", "whole")
    assert both.exit_code == 0, both.output
    assert "2 networks" in (folder / "whole" / "report.html").read_text()


def test_scores_per_class_serve_plans_for_some_of_them(place):
    folder, module = place
    common = (f"{module}:classifier", "--data", "images", "--device", "cpu", "--samples-per-class", 2)
    step = invoke("score", *common, "--per-class", "--out", "all")
    assert step.exit_code == 0, step.output
    step = invoke("score", *common, "--classes", "0,2", "--out", "two", "--no-graph")
    assert step.exit_code == 0, step.output
    step = invoke("plan", "all", "--rate", 0.5, "--classes", "2,0", "--out", "chosen")
    assert step.exit_code == 0, step.output
    assert invoke("plan", "two", "--rate", 0.5).exit_code == 0
    chosen, alone = (pxp.Plan.load(folder / name / "plan.json") for name in ("chosen", "two"))
    assert [g.removed for g in chosen.groups] == [g.removed for g in alone.groups]
    for words, complaint in (
        (("all", "--classes", "0,7"), "choose from the 3 classes that have images: 0, 1, 2"),
        (("all", "--classes", "cat"), "give numbers"),
        (("two", "--classes", "0"), "score again with per_class=True (pxp-fast score --per-class)"),
    ):
        step = invoke("plan", *words)
        assert step.exit_code == 1 and complaint in step.stderr


def sweep_after_scoring(place, scoring, judging=()):
    """The images that scored and those left of the folder, the sweep's output, and what it left in sweep.json."""
    folder, module = place
    common = (f"{module}:classifier", "--data", "images", "--device", "cpu")
    assert invoke("score", *common, *scoring).exit_code == 0
    scored = pxp.Scores.load(folder / "out" / "scores.safetensors").header.data["paths"]
    outcome = invoke("sweep", common[0], "out", *common[1:], "--out", "out", *judging)
    assert outcome.exit_code == 0, outcome.output
    return scored, outcome.output, json.loads((folder / "out" / "sweep.json").read_text())


@pytest.mark.parametrize("count", [6, 0])
def test_a_sweep_by_images_that_all_scored_says_so(place, count):
    scored, output, found = sweep_after_scoring(place, ("--samples-per-class", count))
    assert len(scored) == 18
    assert "18 of the 18 images that judge also scored" in output
    assert (found["images"], found["shared_images"]) == (18, 18)


def test_a_sweep_leaves_out_what_scored_whatever_the_options(place):
    judging = ("--seed", 7, "--samples-per-class", 2)
    _, output, found = sweep_after_scoring(place, ("--samples-per-class", 4, "--seed", 3), judging)
    assert "also scored" not in output
    assert (found["images"], found["shared_images"]) == (6, 0)


def test_a_class_without_other_images_judges_by_those_that_scored(place):
    folder, _ = place
    for position in range(2, 6):
        (folder / "images" / "1" / f"{position:03d}.png").unlink()
    scored, output, found = sweep_after_scoring(place, ("--samples-per-class", 2))
    assert len(scored) == 6
    assert (found["images"], found["shared_images"]) == (10, 2)
    assert "2 of the 10 images that judge also scored" in output


def test_stand_ins_that_scored_do_not_judge(place):
    folder, _ = place
    scored, _, _ = sweep_after_scoring(place, ("--samples-per-class", 2))
    lost = next(path for path in scored if path.startswith("1/"))
    (folder / "images" / lost).write_bytes(b"")
    now, output, found = sweep_after_scoring(place, ("--samples-per-class", 2))
    assert lost not in now and len(now) == 6 and len(set(now) - set(scored)) == 1
    assert "also scored" not in output
    assert (found["images"], found["shared_images"]) == (11, 0)  # 18, less 6 that scored and the damaged one


def test_too_few_images_besides_those_that_scored_are_an_error(place):
    folder, module = place
    common = (f"{module}:classifier", "--data", "images", "--device", "cpu")
    assert invoke("score", *common, "--samples-per-class", 4).exit_code == 0
    outcome = invoke("sweep", common[0], "out", *common[1:], "--samples-per-class", 3)
    assert outcome.exit_code == 1
    assert "class 0 of images has 2 images besides the 4 that scored, 3 asked for" in outcome.stderr


def test_skipped_images_are_named(place):
    folder, module = place
    (folder / "images" / "0" / "001.png").write_bytes(b"")
    step = invoke("eval", f"{module}:classifier", "--data", "images", "--device", "cpu")
    assert step.exit_code == 0, step.output
    assert "of 17 images right" in step.output
    assert "skipped 1 unreadable: images/0/001.png (the file is empty)" in step.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "{net}", "--data", "images", "--rate", "1"), "--rate"),
        (("run", "{net}", "--data", "images", "--rate", "-0.1"), "--rate"),
        (("plan", "scores", "--rate", "nan"), "--rate"),
        (("run", "{net}"), "--data"),
        (("run", "{net}", "--data", "images", "--units", "layers"), "--units"),
        (("run", "{net}", "--data", "images", "--units", ","), "--units"),
        (("run", "{net}", "--data", "images", "--classes", ","), "--classes"),
        (("eval", "{net}", "--data", "images", "--classes", ""), "--classes"),
        (("run", "no_such:network", "--data", "nowhere", "--composite", "foo"), "--composite"),
        (("score", "no_such:network", "--data", "nowhere", "--composite", "foo"), "choose one of epsilon"),
        (("run", "{net}", "--data", "images", "--dtype", "int8"), "--dtype"),
        (("run", "{net}", "--data", "images", "--batch-size", "0"), "--batch-size"),
        (("run", "{net}", "--data", "images", "--checkpoint-kwargs", "{{"), "not JSON"),
        (("run", "{net}", "--data", "images", "--checkpoint-kwargs", "[1]"), "JSON object"),
        (("run", "{net}", "--data", "demo", "--val", "demo"), "--val"),
        (("run", "{net}", "--data", "images", "--no-such-option"), "--no-such-option"),
        (("demo", "lenet"), "lenet"),
        (("fly",), "fly"),
    ],
)
def test_a_wrong_command_line_is_status_two(place, words, message):
    outcome = invoke(*(word.format(net=f"{place[1]}:classifier") for word in words))
    assert outcome.exit_code == 2, outcome.output
    assert message in outcome.output
    assert not (place[0] / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "{m}:nothing", "--data", "images"), "has no 'nothing'"),
        (("run", "{m}:poisoned", "--data", "images"), "4.weight holds NaN"),
        (("run", "{m}:classifier", "--data", "nowhere"), "cannot read the image folder nowhere"),
        (("run", "{m}:classifier", "--data", "images", "--classes", "9"), "class '9' is not in images"),
        (("run", "{m}:classifier", "--data", "images", "--weights", "nowhere.pth"), "nowhere.pth does not exist"),
        (("score", "{m}:classifier", "--data", "images", "--out", "{m}.py/out"), "cannot write into"),
        (("plan", "nowhere"), "there is no scores file nowhere"),
        (("report", "nowhere"), "cannot read nowhere"),
        (("eval", "{m}:classifier", "--data", "images", "--plan", "nowhere"), "there is no plan nowhere"),
    ],
)
def test_what_stands_in_the_way_is_one_line_and_status_one(place, words, message):
    outcome = invoke(*(word.format(m=place[1]) for word in words))
    assert outcome.exit_code == 1, outcome.output
    assert message in outcome.output
    (line,) = outcome.stderr.strip().splitlines()
    assert line.startswith("pxp-fast: ")


def test_debug_shows_where_it_went_wrong(place):
    outcome = process("--debug", "plan", "nowhere", cwd=place[0])
    _, errors = outcome.communicate(timeout=120)
    assert outcome.returncode == 1
    assert "Traceback" in errors and "ScoresError" in errors


def test_scores_and_plans_of_another_model_are_refused(place):
    folder, module = place
    assert invoke("score", f"{module}:classifier", "--data", "images", "--samples-per-class", 2).exit_code == 0
    assert invoke("plan", "out").exit_code == 0
    outcome = invoke("sweep", f"{module}:another", "out", "--data", "images")
    assert outcome.exit_code == 1
    assert f"scores are of model '{module}:classifier', not of '{module}:another'" in outcome.stderr
    outcome = invoke("eval", f"{module}:another", "--data", "images", "--plan", "out")
    assert outcome.exit_code == 1
    assert f"for model '{module}:classifier', not for '{module}:another'" in outcome.stderr


def test_no_space_leaves_whole_files_only(place):
    """A limit on the size of files stands in for a full disk: the page is the first that does not fit."""
    import resource

    folder, module = place
    outcome = process(
        "run", f"{module}:classifier", "--data", "images", "--samples-per-class", 2, "--random-seeds", 0,
        "--device", "cpu", cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    _, errors = outcome.communicate(timeout=300)
    assert outcome.returncode == 1, errors
    assert "pxp-fast: cannot write out/report.html: File too large" in errors
    assert {path.name for path in (folder / "out").iterdir()} == {
        "scores.safetensors", "plan.json", "heatmaps.safetensors", "results.json", "model"
    }  # fmt: skip
    Results.load(folder / "out" / "results.json")


SLOW = """

class Slow(nn.Sequential):
    def forward(self, x):
        import time
        time.sleep(0.05)
        return super().forward(x)


def slow():
    built = classifier()
    slowed = Slow(*built)
    slowed.pxp_input = built.pxp_input
    return slowed
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interruption_leaves_whole_files_only(place, number, workers):
    folder, module = place
    with open(folder / f"{module}.py", "a") as source:
        source.write(SLOW)
    running = process(
        "run", f"{module}:slow", "--data", "images", "--samples-per-class", 2, "--batch-size", 1, "--workers", workers,
        "--device", "cpu", cwd=folder, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "out" / "plan.json").exists():  # from here on it judges, for half a minute
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.02)
    os.killpg(running.pid, number)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 1, errors
    assert errors.strip().splitlines()[-1] == "pxp-fast: interrupted; files already finished are whole"
    assert "Traceback" not in errors
    assert {path.name for path in (folder / "out").iterdir()} == {"scores.safetensors", "plan.json"}
    pxp.Scores.load(folder / "out" / "scores.safetensors", f"{module}:slow")
    pxp.Plan.load(folder / "out" / "plan.json", f"{module}:slow")
    with pytest.raises(ProcessLookupError):  # no process of its group is left behind
        while time.monotonic() < deadline:
            os.killpg(running.pid, 0)
            time.sleep(0.02)


def test_every_command_explains_itself():
    for command in ("run", "score", "plan", "eval", "sweep", "report", "demo"):
        outcome = invoke(command, "--help")
        assert outcome.exit_code == 0
        assert f"pxp-fast {command}" in outcome.output
        assert "Example" in outcome.output


def test_info_names_versions_and_operators():
    import torch

    outcome = invoke("info")
    assert outcome.exit_code == 0, outcome.output
    assert torch.__version__ in outcome.output
    for operator in ("epsilon", "layer_norm", "accumulate_", "mask_", "select"):
        assert operator in outcome.output


def test_the_demo_needs_nothing_but_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke("demo", "vgg", "--out", "demo")
    assert outcome.exit_code == 0, outcome.output
    assert f"report: {tmp_path / 'demo' / 'vgg' / 'report.html'}" in outcome.output
    found = Results.load(tmp_path / "demo" / "vgg" / "results.json")
    least, most = found.curve("least"), found.curve("most")
    chance = [curve.a_pr for curve in found.curves if curve.order == "random"]
    assert least.a_pr > max(chance) > min(chance) > most.a_pr
    assert found.before.accuracy > 0.85
    assert {layer.kind for layer in found.layers} == {"filter", "neuron"}

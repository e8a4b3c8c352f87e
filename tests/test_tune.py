"""The search, against what it should find when each step is done by hand, and against being killed."""

import dataclasses
import fcntl
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from pictures_on_disk import coloured_folder, loaded, tiny, write_module
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast import data, selection
from pxp_fast.budget_search import rate_leaving
from pxp_fast.cli import app
from pxp_fast.config import TuneConfig
from pxp_fast.demo import network
from pxp_fast.demo.networks import ViT
from pxp_fast.errors import OutputError, PlanError, PxpError
from pxp_fast.evaluate import RATES
from pxp_fast.loader import Loader
from pxp_fast.lrp import capture
from pxp_fast.lrp.composites import PRESETS
from pxp_fast.lrp.registry import RULES
from pxp_fast.report import tuning as page
from pxp_fast.tuning import storage
from pxp_fast.tuning.identity import digest_of_graph, digest_of_images
from pxp_fast.tuning.objective import Objective
from pxp_fast.tuning.records import Tuning
from pxp_fast.tuning.space import Candidate, Space, Uses, uses_of
from pxp_fast.tuning.study import Study

ROOT = Path(__file__).parents[1]
SPACE = {"rules": ["epsilon"], "softmax": ["epsilon"], "stabilizer": [1e-6, 1e3]}
"""Stabilizers so large that they change which units go."""


def classifier():
    """A network of random weights, whose every unit matters a little."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4, bias=False),
    ).eval()  # fmt: skip


class Images:
    """Batches of noise, labelled as `classifier` sees it; counts how many have been read."""

    def __init__(self, seed, count=2):
        generator = torch.Generator().manual_seed(seed)
        self.read = 0
        self.batches = []
        for _ in range(count):
            pixels = torch.randn(40, 3, 12, 12, generator=generator)
            self.batches.append((pixels, classifier()(pixels).argmax(1)))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            yield batch


def search(out, *, trials=6, reference=None, judging=None, **options):
    given = {"held_out": Images(3), "space": SPACE, "model_name": "small"} | options
    return pxp.tune(classifier(), reference or Images(1), judging or Images(2), out=out, trials=trials, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return search(out, trials=16, seed=5), out


def by_number(tuning):
    return [(t.number, t.state, t.value, t.parameters, t.magnitude) for t in tuning.trials]


def test_objectives_of_hand_made_accuracies():
    accuracies = {0.0: 0.8, 0.25: 0.77, 0.5: 0.5, 0.75: 0.765}  # 95 % of 0.8 is 0.76: met again at 0.75
    assert Objective.parse("a-pr").value(accuracies) == pytest.approx((0.8 + 0.77 + 0.5 + 0.765) / 4, abs=1e-15)
    assert Objective.parse("top-pr").value(accuracies) == 0.75
    assert Objective.parse("top-pr").value({0.0: 0.8, 0.25: 0.77, 0.5: 0.5}) == 0.25
    assert Objective.parse("rate:0.5") == Objective("rate", 0.5)
    assert Objective.parse("rate:0.5").value({0.5: 0.3}) == Objective.parse("flops:0.25").value({0.37: 0.3}) == 0.3
    assert [str(Objective.parse(text)) for text in ("a-pr", "flops:0.25")] == ["a-pr", "flops:0.25"]


@pytest.mark.parametrize("name", ["a-pr", "top-pr"])
def test_the_steps_of_an_objective_are_the_twenty_rates(name):
    steps = Objective.parse(name).steps()
    assert sorted(rate for step in steps for rate in step) == list(RATES)
    assert steps[0][0] == 0 and all(max(step) - min(step) >= 0.5 for step in steps)


def test_top_pr_of_the_first_step_is_measured_against_the_unpruned_network():
    objective = Objective("top-pr")
    collapsed, good = ({rate: 0.1 if rate > last else 0.8 for rate in objective.steps()[0]} for last in (0.0, 0.6))
    assert objective.value(collapsed) == 0 and objective.value(good) == 0.6


def test_a_search_for_top_pr_gives_up_what_has_collapsed(tmp_path):
    found = search(tmp_path, trials=16, objective="top-pr", seed=5)
    pruned, model = [t for t in found.trials if t.state == "pruned"], classifier()
    assert pruned
    for trial in found.trials:
        scores = pxp.score(model, Images(1), composite=pxp.Composite.from_mapping(trial.composite))
        curve = pxp.sweep(model, scores, Images(2), magnitude=trial.magnitude)
        kept = {rate for rate, accuracy in zip(RATES, curve.accuracies, strict=True)
                if accuracy >= 0.95 * curve.accuracies[0]}  # fmt: skip
        judged = set()
        for step, value in zip(Objective("top-pr").steps(), trial.intermediate, strict=False):
            judged |= set(step)
            assert value == max(kept & judged)
        if trial.state == "complete":
            assert trial.value == max(kept)


def test_what_is_found_is_what_scoring_and_sweeping_by_hand_find(whole):
    found, _ = whole
    model = classifier()
    assert len(found.trials) == 16 and {t.magnitude for t in found.trials} == {True, False}
    for trial in found.trials[::3]:
        scores = pxp.score(model, Images(1), composite=pxp.Composite.from_mapping(trial.composite))
        curve = pxp.sweep(model, scores, Images(2), magnitude=trial.magnitude)
        if trial.state == "complete":
            assert trial.value == pytest.approx(curve.a_pr, abs=1e-12)
        for position, value in enumerate(trial.intermediate):
            rates = {rate for step in Objective("a-pr").steps()[: position + 1] for rate in step}
            known = [curve.accuracies[curve.rates.index(rate)] for rate in sorted(rates)]
            assert value == pytest.approx(sum(known) / len(known), abs=1e-12)
    first = found.trials[0]
    assert first.preset == "epsilon" and first.magnitude and first.parameters["stabilizer"] == 1e-6
    assert found.epsilon.tuning.value == first.value
    assert len({t.value for t in found.trials}) > 6
    assert found.best.tuning.value == max(t.value for t in found.trials if t.state == "complete")
    scores = pxp.score(model, Images(1), composite=found.composite)
    held_out = pxp.sweep(model, scores, Images(3), magnitude=found.best.magnitude)
    assert found.best.held_out.accuracies == held_out.accuracies and found.best.held_out.value == held_out.a_pr
    assert (found.tuning_images, found.held_out_images) == (80, 80)


def test_the_best_is_a_composite_that_scoring_takes(whole, tmp_path):
    found, out = whole
    assert pxp.Composite.load(out / "best.json") == found.composite
    assert Tuning.load(out / "tune.json") == found
    (tmp_path / "tune.json").write_text("{")
    with pytest.raises(OutputError, match=r"tune.json is no intact result of pxp-fast tune .* tune again"):
        Tuning.load(tmp_path / "tune.json")


def files(folder, ending):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob(f"*.{ending}")}


def test_nothing_is_scored_or_judged_twice(tmp_path):
    reference, judging = Images(1), Images(2)
    space = SPACE | {"stabilizer": [1e-6, 1e-6]}
    found = search(tmp_path, trials=6, reference=reference, judging=judging, space=space)
    assert {t.magnitude for t in found.trials} == {True, False}
    # The first batch for the folder's name, the first as an example, then one pass for all trials.
    assert reference.read == 1 + 1 + len(reference)
    scored, judged = files(tmp_path / "cache", "safetensors"), files(tmp_path / "cache", "json")
    assert len(scored) == 1
    # Both ways of ranking at every rate, unpruned once, in no more than five passes each.
    assert judging.read <= 1 + len(judging) * (1 + 2 * 5)
    read = judging.read

    again = search(tmp_path, trials=9, reference=reference, judging=judging, space=space)
    assert len(again.trials) == 9 and again.trials[:6] == found.trials
    assert reference.read == 2 * (1 + 1) + len(reference)
    assert judging.read == read + 1
    assert files(tmp_path / "cache", "safetensors") == scored and files(tmp_path / "cache", "json") == judged


def test_searches_that_share_a_cache_repeat_no_attribution_and_no_judgement(tmp_path):
    reference, judging = Images(1), Images(2)
    common = {"trials": 6, "space": SPACE | {"stabilizer": [1e-6, 1e-6]}, "cache": tmp_path / "cache"}
    first = search(tmp_path / "one", reference=reference, judging=judging, **common)
    scored, judged = files(tmp_path / "cache", "safetensors"), files(tmp_path / "cache", "json")
    assert len(scored) == 1 and not (tmp_path / "one" / "cache").exists()
    read = reference.read, judging.read
    second = search(tmp_path / "two", reference=reference, judging=judging, objective="top-pr", **common)
    assert second.epsilon.tuning.accuracies == first.epsilon.tuning.accuracies
    assert (reference.read, judging.read) == (read[0] + 1 + 1, read[1] + 1)
    assert files(tmp_path / "cache", "safetensors") == scored and files(tmp_path / "cache", "json") == judged
    # Other images that judge need no other scores, and have counts of their own.
    third = search(tmp_path / "three", reference=Images(1), judging=Images(7), **common)
    assert files(tmp_path / "cache", "safetensors") == scored
    scores = pxp.score(classifier(), Images(1))
    assert third.epsilon.tuning.accuracies == pxp.sweep(classifier(), scores, Images(7)).accuracies
    search(tmp_path / "four", reference=Images(8), judging=Images(2), **common)
    assert len(files(tmp_path / "cache", "safetensors")) == 2


def test_damaged_files_of_the_cache_are_made_again(tmp_path):
    found = search(tmp_path / "one", trials=3)
    for path in (tmp_path / "one" / "cache").rglob("*.*"):
        if path.suffix in (".safetensors", ".json"):
            path.write_bytes(b"{")
    (tmp_path / "one" / "study.journal").unlink()
    assert by_number(search(tmp_path / "one", trials=3)) == by_number(found)


def test_a_seed_decides_the_trials_however_often_the_search_is_interrupted(whole, tmp_path):
    expected = by_number(whole[0])
    for trials in (3, 13):
        parts = by_number(search(tmp_path / "parts", trials=trials, seed=5))
    assert parts == expected[:13]
    other = by_number(search(tmp_path / "other", trials=3, seed=6))
    assert other[0] == expected[0] and other[1:] != expected[1:3]


def test_a_gaussian_process_proposes_every_parameter_from_the_eleventh_trial_on(tmp_path, monkeypatch):
    proposed, sample = {}, optuna.samplers.GPSampler.sample_relative

    def watched(self, study, trial, space):
        proposed[trial.number] = sample(self, study, trial, space)
        return proposed[trial.number]

    monkeypatch.setattr(optuna.samplers.GPSampler, "sample_relative", watched)
    space = {"rules": ["epsilon", "gamma"], "softmax": ["epsilon"], "stabilizer": [1e-6, 1e3]}
    found = search(tmp_path, trials=13, sampler="gp", seed=5, space=space)
    assert all(trial.state == "complete" for trial in found.trials)
    for trial in found.trials[10:]:
        assert proposed[trial.number] == trial.parameters and len(trial.parameters) >= 4
        gammas = {name: value for name, value in trial.parameters.items() if name.endswith(".gamma")}
        assert gammas
        for name, value in gammas.items():
            group = name.removesuffix(".gamma")
            given = trial.composite[group]
            if trial.parameters[f"{group}.rule"] == "gamma":
                assert given["gamma"] == float(f"{value:.2g}")
            else:
                assert "gamma" not in given
    assert not any(proposed.get(trial.number) for trial in found.trials[:10])


def test_importance_is_that_of_all_trials_however_early_they_were_given_up(tmp_path):
    study = Study(tmp_path, "random", 0, {})
    with storage.Worker(tmp_path / "workers") as worker:
        for _ in range(30):
            trial = study.next(worker, 30)
            near, far = trial.suggest_float("near", 0, 1), trial.suggest_float("far", 0, 1)
            trial.report(near + 0.01 * far, 0)
            study.tell(trial, 0.5 if trial.number < 5 else None)  # of equal values, or given up
        shares, count = study.importance()
        assert count == 30 and set(shares) == {"near", "far"} and sum(shares.values()) == pytest.approx(1)
        assert list(shares) == ["near", "far"] and shares["near"] > 0.9
        few = Study(tmp_path / "few", "random", 0, {})
        for _ in range(19):
            trial = few.next(worker, 19)
            few.tell(trial, trial.suggest_float("near", 0, 1))
        assert few.importance() == ({}, 19)


def test_the_page_says_of_how_many_trials_importance_is(whole):
    found = whole[0]
    assert (len(found.trials), found.importance, found.importance_trials) == (16, {}, 16)
    html = page.render(found, "pxp-fast tune")
    assert "16 trials are too few to tell which parameters matter; it takes 20" in html
    shares = found.model_copy(update={"importance": {"stabilizer": 0.9, "magnitude": 0.1}, "importance_trials": 31})
    html = page.render(shares, "pxp-fast tune")
    assert "too few to tell" not in html and "over all 31 trials, each by the rates that it was judged at first" in html


def test_hopeless_trials_are_given_up(whole):
    found = whole[0]
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned and all(t.preset is None for t in pruned)
    for trial in pruned:
        position = len(trial.intermediate) - 1
        others = [t for t in found.trials if t.state == "complete" and t.number < trial.number]
        assert len(others) >= 4
        assert trial.intermediate[-1] < statistics.median(t.intermediate[position] for t in others)
        assert trial.value == trial.intermediate[-1] and position < 4


def command(folder, module, out, trials):
    words = [sys.executable, "-m", "pxp_fast", "tune", f"{module}:classifier", "--data", "images", "--out", str(out)]
    words += ["--trials", str(trials), "--samples-per-class", "2", "--space", "space.json", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def journal_of(out):
    study = optuna.load_study(study_name="pxp_fast", storage=storage.journal(out / "study.journal"))
    return study.get_trials(deepcopy=False)


def test_killed_in_the_middle_it_loses_nothing_and_two_processes_finish_it_together(tmp_path):
    coloured_folder(tmp_path / "images", 8)
    module, out = write_module(tmp_path), tmp_path / "out"
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    process = command(tmp_path, module, out, 500)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("trial 3"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    finished = [t for t in journal_of(out) if t.state.is_finished()]
    assert len(finished) >= 4
    kept = files(out / "cache", "safetensors")
    with open(out / "study.journal", "ab") as stream:  # what a loss of power may leave of a line
        stream.write(b'{"op_code":6,"worker_')

    trials = len(journal_of(out)) + 6
    with open(out / ".study.lock", "ab") as lock:  # so that they begin together
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [command(tmp_path, module, out, trials) for _ in range(2)]
        for each in both:
            assert "held out" in each.stderr.readline()
    outputs = [each.communicate(timeout=240) for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    after = journal_of(out)
    for before, now in zip(finished, after, strict=False):
        assert (before.number, before.values, before.params) == (now.number, now.values, now.params)
        assert before.intermediate_values == now.intermediate_values
    done = [t for t in after if t.state.is_finished() and "composite" in t.user_attrs]
    unfinished = [t for t in done if t.values is None]
    assert len(unfinished) <= 1  # what was under way when it was killed, and was tried again
    assert all(t.params in [other.params for other in done if other.values] for t in unfinished)
    assert sum(t.values is not None for t in after) == trials
    assert len({t.user_attrs["worker"] for t in after if t.number >= len(finished) + 1 and t.values}) == 2
    assert kept.items() <= files(out / "cache", "safetensors").items()
    found = Tuning.load(out / "tune.json")
    assert len(found.trials) == trials and found.running == 0


def test_a_journal_is_mended_before_it_is_written_to(tmp_path):
    path = tmp_path / "journal"
    long = b'{"op":"' + b"x" * 200_000 + b'"}\n'
    for content, left in (
        (b"", b""), (b"{}\n{}\n", b"{}\n{}\n"), (b'{}\n{"op', b"{}\n"), (b'{"op', b""), (b"{}\n\0\0\0\n", b"{}\n"),
        (b"{}\n{}\ngarbage\n", b"{}\n{}\n"), (b"{}\n[1]\n", b"{}\n"), (b"\n", b""), (b"{}\n" + long, b"{}\n" + long),
        (long + long[:-3], long),
    ):  # fmt: skip
        path.write_bytes(content)
        storage.mend(path)
        assert path.read_bytes() == left


@pytest.mark.parametrize("damage", [b"garbage\n{}\n", b'{"op_code": 5}\n', b'[1]\n{"op_code": 0}\n'])
def test_a_damaged_journal_is_said_to_be_one(tmp_path, damage):
    search(tmp_path, trials=1)
    with open(tmp_path / "study.journal", "ab") as stream:
        stream.write(damage)
    for _ in range(2):
        with pytest.raises(OutputError, match=r"study.journal is damaged .*; remove it"):
            search(tmp_path, trials=1)


def test_a_journal_whose_last_line_is_no_json_goes_on(tmp_path):
    found = search(tmp_path, trials=2, seed=5)
    for garbage in (b"garbage\n", b"\0" * 100 + b"\n"):
        with open(tmp_path / "study.journal", "ab") as stream:
            stream.write(garbage)
        found = search(tmp_path, trials=len(found.trials) + 1, seed=5)
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]


def test_the_page_is_of_what_the_last_process_to_end_knew(tmp_path):
    first = search(tmp_path, trials=2)
    peers = first.model_copy(update={"running": 3})
    peers.save(tmp_path / "tune.json")  # between the end of this process's search and its page
    page.write(tmp_path, "pxp-fast tune")
    assert "Other processes are still at 3 trials" in (tmp_path / "tune.html").read_text()


def test_a_worker_is_alive_until_it_ends(tmp_path):
    with storage.Worker(tmp_path) as worker:
        assert storage.alive(tmp_path, worker.name)
    assert not storage.alive(tmp_path, worker.name) and not storage.alive(tmp_path, None)
    (tmp_path / "killed").touch()
    assert not storage.alive(tmp_path, "killed") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "objective 'speed' is not known; choose a-pr, top-pr, rate:R"),
        ({"objective": "flops:2"}, "needs a fraction between 0 and 1, such as flops:0.5"),
        ({"objective": "a-pr:0.5"}, "objective 'a-pr:0.5' is not known"),
        ({"sampler": "grid"}, "sampler 'grid' is not known; choose one of tpe, gp, random"),
        ({"trials": 0}, "0 trials were asked for; ask for at least 1"),
        ({"space": {"rules": {"middle": ["epsilon"]}}}, "there is no group 'middle'; the groups are low, mid, high"),
        ({"space": {"rules": []}}, "give at least one"),
        ({"space": {"stabilizer": [1, 0.1]}}, "two positive numbers, the smaller first"),
        ({"space": {"magnitude": [True, True]}}, "none twice"),
        ({"space": {"depth": 3}}, "the search space cannot be used: depth"),
        ({"space": SPACE | {"rules": ["nonsense"]}}, "nonsense"),
        ({"reference": iter(Images(1))}, "an iterator that can be used but once"),
    ],
)
def test_bad_input_is_refused(tmp_path, options, message):
    with pytest.raises(PxpError, match=re.escape(message)):
        search(tmp_path, **options)


def test_a_folder_of_another_search_is_refused(tmp_path):
    search(tmp_path, trials=1)
    for options, name in (
        ({"model_name": "other"}, "model"),
        ({"judging": Images(7)}, "judging images"),
        ({"reference": Images(7)}, "scoring images"),
        ({"held_out": None}, "held out images"),
        ({"objective": "top-pr"}, "objective"),
        ({"space": SPACE | {"magnitude": [True]}}, "search space"),
        ({"units": ["filter"]}, "units"),
        ({"initial": "one"}, "initial"),
    ):
        with pytest.raises(OutputError, match=rf"holds a study with another {name} .*: give another folder with --out"):
            search(tmp_path, trials=1, **options)
    model = classifier()
    with torch.no_grad():
        model[0].weight[0] += 1
    with pytest.raises(OutputError, match="another weights"):
        pxp.tune(model, Images(1), Images(2), held_out=Images(3), out=tmp_path, space=SPACE, model_name="small")
    other = classifier()
    other[1] = nn.Sigmoid()  # the very same parameters
    with pytest.raises(OutputError, match="another architecture"):
        pxp.tune(other, Images(1), Images(2), held_out=Images(3), out=tmp_path, space=SPACE, model_name="small")
    assert len(Tuning.load(tmp_path / "tune.json").trials) == 1


class Halved(nn.Module):
    """What it does to its logits is in no module's description."""

    def __init__(self, halve):
        super().__init__()
        self.own, self.halve = classifier(), halve

    def forward(self, x):
        return self.own(x) / 2 if self.halve else self.own(x).tanh()


def test_networks_are_told_apart_by_what_they_compute():
    digests = [digest_of_graph(capture(Halved(halve), torch.zeros(2, 3, 12, 12))) for halve in (True, False, True)]
    assert digests[0] == digests[2] != digests[1]


def test_every_batch_of_a_list_counts():
    batches = Images(1).batches
    other = [batches[0], (batches[1][0], batches[1][1].flip(0))]
    assert digest_of_images(batches) == digest_of_images(list(Images(1)))
    assert len({digest_of_images(found) for found in (batches, other, batches[:1], batches[::-1])}) == 4


@pytest.mark.parametrize("part", ["judging", "held_out"])
def test_lists_that_share_an_image_are_refused(tmp_path, part):
    parts = {name: Images(seed).batches for seed, name in enumerate(("reference", "judging", "held_out"), 1)}
    generator = torch.Generator().manual_seed(9)
    pixels = torch.cat([torch.randn(3, 3, 12, 12, generator=generator), parts["reference"][1][0][5:7]])
    parts[part] = [*parts[part], (pixels, torch.zeros(5, dtype=torch.int64))]
    what = {"judging": "judge", "held_out": "are held out"}[part]
    with pytest.raises(PxpError, match=f"2 of the images that {what} are also among those that score"):
        search(tmp_path, **parts)
    same = Images(4)
    with pytest.raises(PxpError, match=f"some of the images that {what} are also among those that score"):
        search(tmp_path, reference=same, **{part: same})
    with pytest.raises(PxpError, match=f"some of the images that {what} are also among those that score"):
        search(tmp_path, reference=Images(4), **{part: same})


def test_images_that_judge_must_not_score(tmp_path):
    coloured_folder(tmp_path / "images", 4)
    images = data.image_folder(tmp_path / "images", model=loaded())
    first, others = data.split(images, reference_per_class=2)
    overlapping = dataclasses.replace(images, samples=first.samples[:1] + others.samples)
    with pytest.raises(PxpError, match="1 of the images that judge are also among those that score"):
        search(tmp_path / "out", reference=Loader(first), judging=Loader(overlapping), held_out=None)
    with pytest.raises(PxpError, match="1 of the images that are held out are also among those that judge"):
        search(tmp_path / "out", judging=Loader(first), held_out=Loader(overlapping))


def test_three_disjoint_sets_of_images(tmp_path):
    coloured_folder(tmp_path / "images", 9)
    model = loaded()
    for options, counts in (
        ({}, (12, 6, 9)),
        ({"eval_samples_per_class": 1, "held_out_samples_per_class": 2}, (12, 3, 6)),
    ):
        config = TuneConfig(model="m", data=str(tmp_path / "images"), samples_per_class=4, **options)
        parts = selection.tuning(config, model)
        paths = [{sample.path for sample in part.samples} for part in parts]
        assert tuple(map(len, paths)) == tuple(map(len, parts)) == counts
        assert len(set.union(*paths)) == sum(counts)
    with pytest.raises(PxpError, match=r"class 0 of .* has 5 images that do not score, 6 are asked for \(5 to judge"):
        selection.tuning(
            config.model_copy(update={"eval_samples_per_class": 5, "held_out_samples_per_class": None}), model
        )
    with pytest.raises(PxpError, match="of the images of --val also score"):
        selection.tuning(config.model_copy(update={"val": str(tmp_path / "images")}), model)


def flops_of(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 12, 12))
    return counter.get_total_flops()


def test_accuracy_at_a_flops_target(tmp_path):
    found = search(tmp_path, trials=3, objective="flops:0.6")
    model = classifier()
    scores = pxp.score(model, Images(1), composite=found.composite, initial="bounded")
    plans = [pxp.plan(scores, step / 100, magnitude=found.best.magnitude) for step in range(100)]
    slimmer = pxp.Slimmer(model, Images(1).batches[0][0][:2])
    counted = (flops_of(slimmer.slim(plan)) / flops_of(model) for plan in plans)
    rate = next(step / 100 for step, fraction in enumerate(counted) if fraction <= 0.6)
    with pxp.masked(model, pxp.plan(scores, rate, magnitude=found.best.magnitude)):
        assert found.best.tuning.value == pxp.evaluate(model, Images(2)).accuracy
    assert found.best.tuning.at == rate > 0
    with pytest.raises(PlanError, match="leaves more than 0% of the FLOPs; ask for a larger fraction"):
        rate_leaving(slimmer, lambda rate: plans[round(100 * rate)], 1e-9)


def test_only_layers_that_relevance_passes_have_parameters():
    uses = uses_of(capture(tiny(), torch.zeros(2, 3, 16, 16)), None)
    assert uses == Uses(("fully_connected",), False, ("4",))  # below the only convolution there is no unit
    vit = uses_of(capture(network("vit"), torch.zeros(2, 1, 28, 28)), ("head",))
    assert vit.softmax and "patch_embed.proj" not in vit.modules and "blocks.5.attn.proj" in vit.modules
    assert "blocks.0.attn.qkv" not in vit.modules  # the first heads are above it


def test_the_space_holds_the_named_composite_and_says_what_it_does_not_hold():
    uses = Uses(("mid", "fully_connected"), False, ("a", "b"))
    epsilon = Candidate(PRESETS["epsilon"], True)
    assert Space(rules=("epsilon",)).parameters_of(epsilon, uses) == {"stabilizer": 1e-6, "magnitude": True}
    choice = {"stabilizer": 1e-6, "magnitude": True, "mid.rule": "epsilon", "fully_connected.rule": "epsilon"}
    assert Space().parameters_of(epsilon, uses) == choice
    assert Space(stabilizer=(1e-3, 1)).parameters_of(epsilon, uses) is None
    assert Space(rules=("z-plus", "gamma")).parameters_of(epsilon, uses) is None
    assert Space(magnitude=(False,)).parameters_of(epsilon, uses) is None


def test_a_space_is_read_from_json_or_yaml(tmp_path):
    expected = Space(rules={"low": ("epsilon", "gamma")}, stabilizer=(1e-5, 1.0))
    (tmp_path / "space.json").write_text('{"rules": {"low": ["epsilon", "gamma"]}, "stabilizer": [1e-5, 1]}')
    (tmp_path / "space.yaml").write_text("rules: {low: [epsilon, gamma]}\nstabilizer: [0.00001, 1]\n")
    assert Space.load(tmp_path / "space.json") == Space.load(tmp_path / "space.yaml") == expected
    (tmp_path / "space.yaml").write_text("rules: [")
    with pytest.raises(PxpError, match=r"cannot read the search space .*space.yaml"):
        Space.load(tmp_path / "space.yaml")


@pytest.mark.skipif(not {"z-plus", "gamma", "alpha-beta"} <= set(RULES), reason="these rules are not there yet")
def test_every_rule_takes_part_and_named_composites_come_first(tmp_path):
    torch.manual_seed(2)
    model = ViT(width=16, depth=2, heads=2, hidden=24, classes=4).eval()
    pictures = [torch.randn(16, 1, 28, 28) for _ in range(3)]
    reference, judging, held_out = ([(part, model(part).argmax(1))] for part in pictures)
    found = pxp.tune(model, reference, judging, held_out=held_out, out=tmp_path, trials=14)
    named = [t for t in found.trials if t.preset]
    assert [t.number for t in named] == list(range(len(named))) and named[0].preset == "epsilon"
    assert all(t.state == "complete" for t in named) and len(named) >= 4
    assert found.best.tuning.value >= max(t.value for t in named)
    rules = {value for t in found.trials for key, value in t.parameters.items() if key.endswith(".rule")}
    assert rules == {"epsilon", "z-plus", "gamma", "alpha-beta"}
    for trial in found.trials:
        for key, value in trial.parameters.items():
            if key.endswith(".rule"):
                assert (key.replace(".rule", ".gamma") in trial.parameters) == (value == "gamma")
        assert "softmax" in trial.parameters
    assert {t.state for t in found.trials} <= {"complete", "pruned"}
    scores = pxp.score(model, reference, composite=pxp.Composite.load(tmp_path / "best.json"))
    curve = pxp.sweep(model, scores, held_out, magnitude=found.best.magnitude)
    assert curve.a_pr == pytest.approx(found.best.held_out.value, abs=1e-12)


def test_the_command_leaves_a_page_that_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 8)
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    words = ["tune", f"{write_module(tmp_path)}:classifier", "--data", "images", "--samples-per-class", "2", "--device",
             "cpu", "--trials", "9", "--space", "space.json"]  # fmt: skip
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    assert "6 images score, 9 judge the trials, 9 are held out" in outcome.stderr
    assert f"report: {tmp_path / 'tune' / 'tune.html'}" in outcome.stdout and "tune/best.json" in outcome.stdout
    found = Tuning.load(tmp_path / "tune" / "tune.json")
    html = (tmp_path / "tune" / "tune.html").read_text()
    assert "<script" not in html and "<link" not in html and not re.search(r'(src|href)="(?!#)', html)
    assert not re.search(r"url\((?!#)|@import", html)
    assert f"{found.best.held_out.value:.4f}" in html and page.headline(found) in html
    assert html.count("<svg") == (3 if found.importance else 2)
    for trial in found.trials:
        assert f'<tr><td class="n">{trial.number}</td><td class="n">{trial.value:.4f}</td>' in html
    outcome = CliRunner().invoke(app, [*words[:-2], "--objective", "speed"])
    assert outcome.exit_code == 1 and "objective 'speed' is not known" in outcome.stderr
    assert CliRunner().invoke(app, [*words, "--sampler", "grid"]).exit_code == 2

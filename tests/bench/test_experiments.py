"""The experiments' statistics, cells and page, by hand and by brute force; no data set and no trained network."""

import dataclasses
import json
import statistics

import pytest
import torch
from safetensors.torch import save_file

import pxp_fast as pxp
from bench.experiments import claims, data, page, plots, results, run
from bench.experiments.measure import Bench
from bench.experiments.methods import BY_NAME, METHODS, SUBJECTS
from bench.experiments.networks import NETWORKS
from pxp_fast.errors import PxpError

RATES = list(pxp.RATES)
RESNET, HEADS = SUBJECTS[1], SUBJECTS[3]


def steps(until, total=100):
    """Right answers of a network that knows everything up to a number of rates, and nothing after."""
    return [total] * until + [0] * (len(RATES) - until)


def test_a_pr_is_the_mean_accuracy_and_top_pr_the_last_rate_that_keeps_95_percent():
    falling = [100, 95, 94, 96] + [0] * 16
    cell = {"correct": [steps(10), falling], "total": 100}
    assert results.a_pr(cell, RATES) == pytest.approx([0.5, 3.85 / 20])
    assert results.top_pr(cell, RATES) == [0.45, 0.15]


def test_standard_error_is_the_deviation_of_the_mean():
    values = [0.1, 0.4, 0.7, 0.2]
    found = results.estimate(values)
    assert found.mean == pytest.approx(sum(values) / 4)
    assert found.error == pytest.approx((sum((v - found.mean) ** 2 for v in values) / 3 / 4) ** 0.5)
    assert str(results.estimate([0.5])) == "0.500" and results.estimate([0.5]).side() == 0


def test_a_difference_is_taken_pair_by_pair():
    ours, theirs = [0.9, 0.5, 0.7, 0.3], [0.8, 0.4, 0.61, 0.19]
    gap = results.difference(ours, theirs)
    gaps = [0.1, 0.1, 0.09, 0.11]
    assert (gap.mean, gap.error) == pytest.approx((0.1, statistics.stdev(gaps) / 2))
    assert gap.side() == 1 and results.difference(theirs, ours).side() == -1
    assert results.difference([0.5, 0.6], [0.6, 0.5]).side() == 0
    assert [results.Estimate(0.1, 0.02).side(at) for at in (0.05, 0.07, 0.13, 0.15)] == [1, 0, 0, -1]


def test_the_error_of_one_run_is_that_of_its_images():
    ours = {"correct": [[90] + [60] * 19], "total": 100}
    theirs = {"correct": [[90] + [40] * 19, [90] + [44] * 19], "total": 100}
    gap = results.apart(ours, theirs, RATES)
    means = [0.615, (0.425 + 0.463) / 2]
    assert gap.mean == pytest.approx(means[0] - means[1])
    squares = [mean * (1 - mean) / 100 for mean in means]
    assert gap.error == pytest.approx((sum(squares) + (0.038 / 2) ** 2) ** 0.5)


def test_finished_cells_are_kept_and_each_says_what_made_it(tmp_path):
    path = tmp_path / "three.json"
    first = results.Results.open(path, {"seeds": (1, 2)}, {"processor": "Abacus"})
    assert first.cell("a", lambda: {"total": 1})
    with pytest.raises(ZeroDivisionError):
        first.cell("b", lambda: 1 / 0)
    again = results.Results.open(path, {"seeds": (1, 2)}, {"processor": "Slide rule"})
    assert not again.cell("a", lambda: pytest.fail("made twice"))
    assert again.cell("c", lambda: {"total": 3}) and again.cell("d", lambda: {"total": 4})
    third = results.Results.open(path, {"seeds": (1, 2)}, {"processor": "Abacus"})
    assert third.cell("d", lambda: {"total": 5}, again=True) and third.cells["d"]["total"] == 5

    record = json.loads(path.read_text())
    made_by = {name: record["about"][cell["about"]]["processor"] for name, cell in record["cells"].items()}
    assert made_by == {"a": "Abacus", "c": "Slide rule", "d": "Abacus"} and len(record["about"]) == 2
    assert results.makers(record) == record["about"]


def test_a_file_of_other_settings_is_not_written_over_unless_asked(tmp_path):
    path = tmp_path / "three.json"
    results.Results.open(path, {"seeds": (1, 2), "judged_per_class": 5}).cell("a", lambda: {"total": 1})
    with pytest.raises(
        PxpError, match=r"three.json .* other settings: seeds \[1, 2\] there, \[1, 2, 3\] here; .*--again"
    ):
        results.Results.open(path, {"seeds": (1, 2, 3), "judged_per_class": 5})
    assert results.Results.open(path, {"seeds": (1, 2, 3)}, again=True).cells == {}
    assert json.loads(path.read_text())["cells"]["a"]["total"] == 1  # until there is something better


def test_files_from_before_each_cell_had_a_maker_are_read(tmp_path):
    path = tmp_path / "three.json"
    old = {"seeds": 2, "about": {"processor": "Abacus"}, "cells": {"tuned": {"total": 1}, "epsilon": {"total": 2}}}
    path.write_text(json.dumps(old))
    assert results.makers(old) == [{"processor": "Abacus"}]
    kept = results.Results.open(path, {"seeds": 2}, {"processor": "Slide rule"})
    assert not kept.cell("tuned", lambda: pytest.fail("made twice"), composite="1234")
    kept.cell("taylor", lambda: {"total": 3})
    record = json.loads(path.read_text())
    assert {name: record["about"][cell["about"]]["processor"] for name, cell in record["cells"].items()} == {
        "tuned": "Abacus", "epsilon": "Abacus", "taylor": "Slide rule"
    }  # fmt: skip


def test_cells_of_another_tuned_composite_are_made_anew(bench):
    def put(composite, initial="one"):
        found = {"composite": pxp.Composite(low=composite).describe(), "magnitude": True}
        bench.results.mkdir(exist_ok=True)
        bench.tuned_path(RESNET, initial).write_text(json.dumps(found))
        bench.scores.cache_clear()

    def counts(name):
        return json.loads((bench.results / "all_resnet20_filter.json").read_text())["cells"][name]["correct"]

    put("epsilon"), put("epsilon", "bounded")
    assert bench.tuned_path(RESNET, "bounded").name == "tuned_resnet20_filter_bounded.json"
    assert run.run(bench, ["all"], [RESNET], ["tuned", "tuned_bounded", "epsilon", "epsilon_bounded"]) == []
    assert counts("tuned") == counts("epsilon") and counts("tuned_bounded") == counts("epsilon_bounded")
    put("alpha-beta")
    before = counts("tuned"), counts("tuned_bounded")
    assert run.run(bench, ["all"], [RESNET], ["tuned", "tuned_bounded"]) == []
    assert counts("tuned") != before[0] and counts("tuned_bounded") == before[1]
    model = bench.network("resnet20")
    plan = pxp.plan(
        pxp.score(model, [data.images("train", 2)], composite=pxp.Composite(low="alpha-beta"), initial="one"), RATES[6]
    )
    assert counts("tuned")[0][6] == right(model, plan, range(10), 2)


def test_each_search_starts_from_its_own_initial_relevance(bench, monkeypatch):
    quick = dataclasses.replace(bench, trials=1, tuning=1, references=1)
    assert run.run(quick, ["tune"], [RESNET], ["tuned", "tuned_bounded"]) == []
    for initial in ("one", "bounded"):
        found = json.loads(quick.tuned_path(RESNET, initial).read_text())
        assert found["initial"] == initial
        scores = pxp.score(bench.network("resnet20"), [data.images("train", 1)], initial=initial)
        judging = [part[10:] for part in data.images("train", 2)]
        curve = pxp.sweep(bench.network("resnet20"), scores, [judging], dtype=torch.float32)
        assert found["a_pr_epsilon"] == pytest.approx(curve.a_pr)


def test_every_prefix_of_the_images_is_balanced():
    labels = torch.arange(60).remainder(3)[torch.randperm(60)]
    index = data.balanced(labels, 7, seed=1)
    assert len(set(index.tolist())) == 21
    assert labels[index].tolist() == [0, 1, 2] * 7
    assert data.balanced(labels, 4, seed=1).tolist() == index[:12].tolist()


def test_two_draws_are_balanced_and_have_no_image_in_common():
    for count in (1, 5):
        one, other = run.draws(classes=3, most=5, count=count, seed=2)
        assert sorted(sample % 3 for sample in one) == sorted([0, 1, 2] * count)
        assert sorted(sample % 3 for sample in other) == sorted([0, 1, 2] * count)
        assert len(set(one) | set(other)) == 6 * count and max(one + other) < 30
    assert set(run.draws(3, 5, 2, seed=2)[0]) <= set(run.draws(3, 5, 5, seed=2)[0])
    assert run.draws(3, 5, 2, seed=2) != run.draws(3, 5, 2, seed=3)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """An untrained ResNet-20 and noise, in place of CIFAR-10."""
    torch.manual_seed(0)
    noise = {}
    for split, count in (("train", 20), ("test", 40)):
        noise[f"{split}_images"] = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        noise[f"{split}_labels"] = torch.arange(count).remainder(10)
    monkeypatch.setattr(data, "arrays", lambda: noise)
    save_file(NETWORKS["resnet20"]().state_dict(), tmp_path / "resnet20.safetensors")
    settings = {"references": 2, "judged": 2, "judged_small": 4, "seeds": 1, "random_seeds": 2, "dtype": "float32"}
    return Bench(tmp_path, tmp_path / "results", **settings)


def right(model, plan, classes, per_class):
    """By zeroing the plan's parameters in a copy, and the largest of the classes' logits."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for group in plan.groups:
        for piece in group.slices:
            state[piece.parameter].index_fill_(piece.dim, torch.tensor(group.removed, dtype=torch.int64), 0)
    images, labels = data.images("test", per_class)
    with torch.no_grad():
        logits = torch.func.functional_call(model, state, (images,))
    predicted = torch.tensor(classes)[logits[:, list(classes)].argmax(1)]
    return sum(int(p == y) for p, y in zip(predicted, labels, strict=True) if int(y) in classes)


def test_cells_are_what_brute_force_counts(bench):
    assert run.run(bench, ["three", "all"], [RESNET], ["epsilon", "random"]) == []
    three, whole = (
        json.loads((bench.results / f"{name}_resnet20_filter.json").read_text()) for name in ("three", "all")
    )
    model, reference = bench.network("resnet20"), data.images("train", 2)
    assert three["cells"]["epsilon"]["total"] == 12 and len(whole["cells"]["random"]["correct"]) == 2
    for seed, classes in enumerate(three["tasks"]):
        own = torch.isin(reference[1], torch.tensor(classes))
        scores = pxp.score(model, [(reference[0][own], reference[1][own])], initial="one")
        for position in (0, 3, 12):
            plan = pxp.plan(scores, RATES[position])
            assert three["cells"]["epsilon"]["correct"][seed][position] == right(model, plan, classes, 4)
            plan = pxp.plan(scores, RATES[position], order="random", seed=seed)
            assert three["cells"]["random"]["correct"][seed][position] == right(model, plan, classes, 4)
    plan = pxp.plan(pxp.score(model, [reference], initial="one"), RATES[6])
    assert whole["cells"]["epsilon"]["correct"][0][6] == right(model, plan, range(10), 2)


def test_what_cannot_run_is_named_and_the_rest_is_made(bench, capsys):
    assert run.run(bench, ["all"], [RESNET], ["tuned", "random"]) == ["all resnet20_filter tuned"]
    assert "there is no tuned_resnet20_filter.json" in capsys.readouterr().err
    assert list(json.loads((bench.results / "all_resnet20_filter.json").read_text())["cells"]) == ["random"]
    assert run.run(bench, ["all"], [HEADS], ["random"]) == ["all vit_head random"]
    assert "python -m bench.experiments.train vit" in capsys.readouterr().err


def test_overlap_counts_the_units_that_both_remove(bench):
    scores = bench.scores(RESNET, BY_NAME["epsilon"], 1)
    one, other = (pxp.plan(scores, 0.3, order=order) for order in ("least", "most"))
    assert run.overlap(one, one) == 1 and run.overlap(one, other) == 0
    assert run.overlap(one, pxp.plan(scores, 0.6)) == 1


def record(cells, **more):
    return {"rates": RATES, "cells": {k: {"correct": v, "total": 100} for k, v in cells.items()}, **more}


@pytest.fixture
def records():
    """Three tasks on which random beats epsilon for heads, magnitude is like epsilon, and the search is best."""
    cells = {
        "tuned": [steps(16), steps(15), steps(16)],
        "epsilon": [steps(10), steps(12), steps(11)],
        "magnitude": [steps(12), steps(10), steps(11)],
        "random": [steps(14), steps(13), steps(14)],
    }
    common = {"references_per_class": 10, "judged_per_class": 30, "judged_in": "bfloat16"}
    few_and_many = {
        "correct": {"1": [steps(4), steps(6)], "10": [steps(8), steps(8)]},
        "overlap": {"1": [0.5, 0.7], "10": [0.9, 0.9]},
        "total": 100,
    }
    studied = {"counts": [1, 10], "draws": 2, "overlap_at": 0.3, "judged_per_class": 50}
    return {
        "three_vit_head": record(cells, tasks=[[0, 1, 2]] * 3, **common),
        "all_vit_head": record({"epsilon": [steps(6)]}, random_seeds=5, **common),
        "references_vit_head": {"rates": RATES, "cells": {"epsilon": few_and_many}, **studied},
    }


def test_tables_show_mean_and_standard_error_and_the_best_in_bold(records):
    table = page.table(records, "three", results.a_pr, str).splitlines()
    assert table[0] == "| | ViT, heads |"
    assert table[2] == "| *unpruned accuracy* | 1.000 ± 0.000 |"
    assert table[3] == "| LRP, optimised composite | **0.783 ± 0.017** |"
    assert table[4] == "| LRP, epsilon | 0.550 ± 0.029 |"
    assert page.table(records, "all", results.top_pr, page.percent).splitlines()[2] == "| LRP, epsilon | 25% |"
    assert page.reference_table(records).splitlines()[2:] == [
        "| ViT, heads: LRP, epsilon | A_PR | 0.250 ± 0.050 | 0.400 ± 0.000 |",
        "| ViT, heads: LRP, epsilon | agreement | 0.600 ± 0.100 | 0.900 ± 0.000 |",
    ]


def test_claims_are_judged_by_the_results(records):
    def verdict(judge):
        return judge(records, HEADS).verdict

    assert verdict(claims.better("epsilon", ["random"])) == claims.FAILED
    assert verdict(claims.better("tuned", ["epsilon", "random"])) == claims.HELD
    assert verdict(claims.better("epsilon", ["magnitude"])) == claims.OPEN
    assert verdict(claims.no_better("tuned", "epsilon")) == claims.FAILED
    assert verdict(claims.no_better("epsilon", "tuned")) == claims.HELD
    assert verdict(claims.no_better("epsilon", "magnitude")) == claims.OPEN
    assert verdict(claims.keeps("epsilon", 0.2)) == claims.HELD
    assert verdict(claims.keeps("epsilon", 0.3)) == claims.FAILED
    assert verdict(claims.suffices("epsilon", 10, 0.01)) == claims.HELD
    assert verdict(claims.suffices("epsilon", 1, 0.01)) == claims.FAILED
    assert claims.better("epsilon", ["cp_lrp"])(records, HEADS) is None
    closest = claims.better("tuned", ["epsilon", "random"])(records, HEADS)
    assert closest.text == "+0.100 ± 0.000 over random"


def test_what_lies_within_two_standard_errors_of_a_threshold_is_undecided(records):
    three, whole = records["three_vit_head"]["cells"], records["all_vit_head"]["cells"]
    three["taylor"] = {"correct": [steps(2), steps(15), steps(12)], "total": 100}  # worse on average, but unsure
    three["gradient"] = {"correct": [steps(14), steps(13), steps(14)], "total": 100}
    found = claims.better("tuned", ["taylor", "gradient"])(records, HEADS)
    assert found.verdict == claims.OPEN and found.text.endswith("over Taylor (activation x gradient)")
    three["gradient"] = {"correct": [steps(18), steps(17), steps(18)], "total": 100}
    found = claims.better("tuned", ["taylor", "gradient"])(records, HEADS)
    assert (found.verdict, found.text) == (claims.FAILED, "-0.100 ± 0.000 over gradient")
    found = claims.better("tuned", ["epsilon", "activation"])(records, HEADS)
    assert found.verdict == claims.OPEN and found.text.endswith("over LRP, epsilon; activation not measured")

    whole["epsilon"] = {"correct": [[80] * 4 + [78] + [0] * 15], "total": 100}  # 95 % of 80 are 76
    assert claims.keeps("epsilon", 0.2)(records, HEADS).verdict == claims.OPEN
    whole["epsilon"] = {"correct": [[8000] * 4 + [7800] + [0] * 15], "total": 10000}
    assert claims.keeps("epsilon", 0.2)(records, HEADS).verdict == claims.HELD

    study = records["references_vit_head"]["cells"]["epsilon"]["correct"]
    study["1"], study["10"] = [steps(9), steps(7)], [steps(8), steps(8)]  # 0 ± 0.05
    assert claims.suffices("epsilon", 1, 0.01)(records, HEADS).verdict == claims.OPEN


def test_a_claim_says_for_how_many_subjects_it_held(records):
    records["three_vit_neuron"] = record({"epsilon": [steps(9), steps(10)], "random": [steps(2), steps(3)]})
    claim = claims.Claim("epsilon beats chance", SUBJECTS, claims.better("epsilon", ["random"]))
    assert claim.verdict(records) == "held for 1, did not hold for 1"
    assert claim.verdict({}) == claims.MISSING


def test_where_a_baseline_beats_relevance_is_listed(records):
    lines = page.baseline_table(records).splitlines()
    assert lines[2:] == [
        "| ViT, heads: weight magnitude |  | LRP, epsilon (+0.000 ± 0.058) | LRP, optimised composite "
        "(-0.233 ± 0.017) |",
        "| ViT, heads: random | LRP, epsilon (+0.133 ± 0.044) |  | LRP, optimised composite (-0.100 ± 0.000) |",
    ]
    cells = records["all_vit_head"]["cells"]
    cells["activation"], cells["cp_lrp"] = ({"correct": [[right] * 20], "total": 400} for right in (200, 120))
    lines = page.baseline_table(records).splitlines()
    error = ((0.5**2 + 0.3 * 0.7) / 400) ** 0.5
    assert lines[3] == (
        f"| ViT, heads, all ten classes: activation | LRP, epsilon (+0.200 ± {(0.25 / 400 + 0.21 / 100) ** 0.5:.3f}); "
        f"LRP, CP-LRP (+0.200 ± {error:.3f}) |  |  |"
    )
    assert page.baseline_table({}) == "Not measured."


def test_bounded_initial_relevance_is_shown_beside_1(records):
    records["three_vit_head"]["cells"]["epsilon_bounded"] = {"correct": [steps(12), steps(14), steps(13)], "total": 100}
    assert page.initial_table(records).splitlines()[2:] == ["| ViT, heads | +0.100 ± 0.000 (better) |  |"]
    assert page.initial_table({}) == "Not measured."


def test_bold_is_whatever_cannot_be_told_from_the_best(records):
    three, whole = records["three_vit_head"]["cells"], records["all_vit_head"]["cells"]
    three["taylor"] = {"correct": [steps(17), steps(12), steps(17)], "total": 100}
    rows = page.table(records, "three", results.a_pr, str).splitlines()[3:]
    assert [row.split("|")[1].strip() for row in rows if "**" in row] == [
        "LRP, optimised composite", "Taylor (activation x gradient)"
    ]  # fmt: skip
    whole["epsilon"], whole["taylor"], whole["random"] = (
        {"correct": [[right] * 20] * count, "total": 1000} for right, count in ((500, 1), (520, 1), (400, 5))
    )
    rows = page.table(records, "all", results.a_pr, str).splitlines()[3:]
    assert ["**" in row for row in rows] == [True, True, False]
    assert "**" not in page.table(records, "all", results.top_pr, page.percent)


def test_the_page_says_that_tasks_are_not_independent(records):
    records["three_vit_head"]["tasks"] = [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert "3 random choices of three classes, 2 of them different" in page.caption(records, "three")
    for words in ("share the network, the reference images and the test images", "not independent"):
        assert words in page.caption(records, "three")
    assert "standard error of 0.046 or less" in page.caption(records, "all")  # of 100 images, three tenths right


def test_a_composite_is_shown_in_a_few_words():
    rules = {"low": {"rule": "gamma", "gamma": 0.1}, "mid": "epsilon", "high": {"rule": "z-plus"}}
    composite = {**rules, "fully_connected": "epsilon", "softmax": "cp", "stabilizer": 1e-6}
    found = {"composite": composite, "magnitude": True, "trials": 30, "a_pr": 0.75, "a_pr_epsilon": 0.7}
    assert page.tuned_table({"ViT": found}).splitlines()[2] == (
        "| ViT | gamma (gamma 0.1) | epsilon | z-plus | epsilon | cp | 1e-06 | absolute | 0.750, 0.700 (30) |"
    )


def test_the_page_is_made_and_stays_the_same(records, tmp_path):
    folder = tmp_path / "bench" / "results" / "experiments"
    folder.mkdir(parents=True)
    for name, content in records.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "pxp.md").write_text(f"above\n\n{page.START}\nstale words\n{page.END}\n\nbelow\n")
    page.main(tmp_path)
    made = {path.name: path.read_bytes() for path in docs.iterdir()}
    assert set(made) == {"pxp.md", "pxp_three.svg", "pxp_all.svg", "pxp_references.svg"}
    text = made["pxp.md"].decode()
    assert text.startswith("above\n") and text.endswith("below\n") and "stale words" not in text
    page.main(tmp_path)
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == made
    (docs / "pxp.md").write_text("no markers")
    with pytest.raises(ValueError, match="once each and in this order"):
        page.main(tmp_path)


def test_the_page_in_the_tree_is_what_the_results_make():
    text = (page.ROOT / "docs" / "pxp.md").read_text()
    folders = "bench/results/experiments", "bench/experiments/weights"
    assert page.with_section(text, page.section(*(page.load(page.ROOT / folder) for folder in folders))) == text


def test_methods_have_names_of_their_own_and_plots_show_known_ones():
    assert len(BY_NAME) == len(METHODS) and set(plots.SHOWN) <= set(BY_NAME)
    assert set(run.STUDIED) | set(claims.BASELINES) <= set(BY_NAME)

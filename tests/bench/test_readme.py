"""The README says what the committed results say."""

import json
import shutil

import pytest

from bench import readme
from bench.contest import RATIO, RATIO_ALIKE, add_ratios
from bench.peers import CONTENDERS, versions


def test_readme_in_the_tree_is_what_the_results_make():
    text, results = (readme.ROOT / "README.md").read_text(), readme.ROOT / "bench" / "results"
    assert readme.with_section(text, "speed", readme.section(results)) == text
    text, rules = (readme.ROOT / "docs" / "rules.md").read_text(), json.loads((results / "rules.json").read_text())
    assert readme.with_section(text, "costs", readme.rule_table(rules)) == text


def test_every_contender_has_a_label_and_every_label_a_contender():
    assert readme.LABELS.keys() == CONTENDERS.keys()
    for label in readme.LABELS.values():
        label.format_map(versions())


def entry(wall, cpu):
    return {"wall_ms": wall, "fastest_wall_ms": wall, "cpu_ms": cpu, "calls": 3, "undisturbed": 2}


@pytest.fixture
def tree(tmp_path):
    """A repository with one result: three contenders on two networks, one of which failed."""
    found = {
        "gradient": entry(10.0, 20.0),
        "gradient channels-last": entry(8.0, 16.0),
        "pxp_fast": entry(4.0, 8.0),
        "zennit": {"failed": "RuntimeError: no"},
    }
    vit = {"gradient": entry(5.0, 10.0), "pxp_fast": entry(0.5, 5.0)}
    add_ratios(found, "resnet18", "cpu")
    add_ratios(vit, "vit_b_16", "cpu")
    record = {
        "command": "python -m bench.bench_end_to_end --repeats 3",
        "machine": {"processor": "Abacus", "cores": 4, "threads": 2},
        "versions": versions(),
        "device": "cpu",
        "batch": 8,
        "repeats": 3,
        "date": "2026-01-02",
        "models": {"vit_b_16": vit, "resnet18": found},
    }
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    (results / "end_to_end.json").write_text(json.dumps(record))
    start, end = "<!-- speed: made by `python -m bench.readme` -->", "<!-- end of speed -->"
    (tmp_path / "README.md").write_text(f"above\n\n{start}\nold\n{end}\n\nbelow\n")
    return tmp_path


def test_ratios_are_to_both_yardsticks(tree):
    models = json.loads((tree / "bench" / "results" / "end_to_end.json").read_text())["models"]
    ours = models["resnet18"]["pxp_fast"]
    assert (ours[RATIO], ours[RATIO_ALIKE], ours["images_per_second"]) == (0.4, 0.5, 250.0)
    assert ours["gradient_of_same_dtype_and_layout"] == "gradient channels-last"
    assert models["vit_b_16"]["pxp_fast"][RATIO_ALIKE] == 0.5


def test_table_and_plot_are_made_and_stay_the_same(tree):
    readme.main(tree)
    text, plot = (tree / "README.md").read_text(), (tree / "docs" / "speed.svg").read_bytes()
    assert text.startswith("above\n\n<!--") and text.endswith("-->\n\nbelow\n") and "old" not in text
    lines = text.splitlines()
    assert "| images per second | ResNet-18 | ViT-B/16 |" in lines
    assert "| torch: forward + input gradient | 100 | 200 |" in lines
    assert "| **pxp_fast**, float32 | 250 | 2,000 |" in lines
    assert not any(line.startswith("| zennit") for line in lines)
    assert "2 of 4 cores (Abacus)" in text and "10 of 15 timed turns" in text
    assert "No GPU figures" in text
    readme.main(tree)
    assert (tree / "README.md").read_text() == text
    assert (tree / "docs" / "speed.svg").read_bytes() == plot


def test_what_kept_memory_is_worth_is_said(tree):
    results = tree / "bench" / "results"
    record = json.loads((results / "end_to_end.json").read_text())
    for found, ours in ((record["models"]["resnet18"], 6.0), (record["models"]["vit_b_16"], 4.0)):
        found["pxp_fast bfloat16"] = found["pxp_fast"] | {RATIO: ours / 20}
    (results / "end_to_end.json").write_text(json.dumps(record))
    record["models"]["resnet18"]["pxp_fast"][RATIO] = 0.75
    (results / "end_to_end_retained.json").write_text(json.dumps(record))
    readme.main(tree)
    text = (tree / "README.md").read_text()
    assert "ResNet-18 0.75 / 0.30 (0.40 / 0.30)" in text and "ViT-B/16 0.50 / 0.20 (0.50 / 0.20)" in text


def test_gpu_figures_get_a_table_of_their_own(tree):
    results = tree / "bench" / "results"
    record = json.loads((results / "end_to_end.json").read_text())
    record |= {"device": "cuda", "machine": {"gpu": "Sand 9", "gpu_memory_gb": 140.6}}
    (results / "end_to_end_cuda.json").write_text(json.dumps(record))
    text = readme.section(results)
    assert text.count("| images per second |") == 2 and "one Sand 9 (141 GB)" in text and "No GPU" not in text


def test_a_readme_without_markers_is_refused(tree):
    (tree / "README.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="once each and in this order"):
        readme.main(tree)
    assert (tree / "README.md").read_text() == "nothing\n"


def test_growth_is_drawn(tree):
    """From its results, points that failed left out."""
    points = {"1": {"gradient": entry(2.0, 4.0) | {"peak_mb": 7.0}, "pxp_fast": {"failed": "no"}}}
    record = {"clock": "cpu_ms", "networks": {"resnet18": dict.fromkeys(("batch", "size", "images"), points)}}
    (tree / "bench" / "results" / "growth.json").write_text(json.dumps(record))
    shutil.rmtree(tree / "docs", ignore_errors=True)
    readme.main(tree)
    drawn = (tree / "docs" / "growth.svg").read_text()
    assert "images per batch" in drawn and "pixels per side" in drawn and "peak memory (MB)" in drawn

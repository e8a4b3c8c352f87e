"""The results file: written, read, refused; and its confidence interval."""

import json

import pytest
from report.examples import heat_maps, results, slimmed

from pxp_fast.errors import PxpError
from pxp_fast.heatmaps import HeatMaps
from pxp_fast.results import Hits, Results


@pytest.mark.parametrize("found", [results(), slimmed()])
def test_results_come_back_as_they_were(tmp_path, found):
    found.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == found


def test_files_from_before_networks_became_smaller_are_still_read(tmp_path):
    found = results()
    content = json.loads(found.model_dump_json())
    for name in ("paired", "slimmed", "costs", "agreement"):
        del content[name]
    for name in ("before", "after"):
        content[name] = {"correct": content[name]["correct"], "total": content[name]["total"]}
    for layer in content["layers"]:
        del layer["cut"], layer["zeros"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert Results.load(tmp_path / "results.json") == found


def test_the_file_holds_what_is_computed_from_it():
    content = json.loads(slimmed().model_dump_json())
    assert content["after"]["accuracy"] == 0.81
    assert content["after"]["interval"] == pytest.approx([0.762, 0.850], abs=1e-3)
    assert content["paired"]["difference"] == -0.09 and content["paired"]["p_value"] < 1e-4
    assert content["costs"]["promised"] == 1.7
    assert [layer["zeros"] for layer in content["layers"]] == [0, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content | {"version": 2}, r"version 1 \(version 2\)"),
        (lambda content: {"anything": 1}, "is not a pxp_fast results file"),
        (lambda content: [content], "is not a pxp_fast results file"),
        (lambda content: content | {"before": {"correct": "many", "total": 3}}, "is damaged: before.correct"),
        (lambda content: {k: v for k, v in content.items() if k != "layers"}, "is damaged: layers"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, change, words):
    content = json.loads(results().model_dump_json())
    (tmp_path / "results.json").write_text(json.dumps(change(content)))
    with pytest.raises(PxpError, match=words):
        Results.load(tmp_path / "results.json")


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(PxpError, match="cannot read .*No such file"):
        Results.load(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(results().model_dump_json()[:100])
    with pytest.raises(PxpError, match="is not JSON"):
        Results.load(tmp_path / "results.json")


# From the closed form as Brown, Cai and DasGupta (2001) print it, evaluated by hand; and the two edges.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (19, 20, 0.7639, 0.9911), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_the_confidence_interval_is_wilsons(correct, total, low, high):
    found = Hits(correct=correct, total=total).interval
    assert found == pytest.approx((low, high), abs=1e-4)


def test_heat_maps_come_back_and_belong_to_their_results(tmp_path):
    found = results()
    maps = heat_maps(found)
    maps.save(tmp_path / "heatmaps.safetensors")
    again = HeatMaps.load(tmp_path / "heatmaps.safetensors", found.heatmaps)
    assert (again.before == maps.before).all() and (again.images == maps.images).all()
    with pytest.raises(PxpError, match="holds 1 heat maps, results.json describes 0"):
        HeatMaps.load(tmp_path / "heatmaps.safetensors", ())
    (tmp_path / "heatmaps.safetensors").write_bytes(b"damaged")
    with pytest.raises(PxpError, match="cannot read the heat maps"):
        HeatMaps.load(tmp_path / "heatmaps.safetensors", found.heatmaps)

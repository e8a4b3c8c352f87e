"""Scores of single images: every part of the reference set scored a second time, the file, and what is refused."""

import dataclasses

import pytest
import torch
from test_step import Traced, batches, cnn, vit

import pxp_fast as pxp
from pxp_fast.criteria import CudaGraphs, Relevance, Step
from pxp_fast.criteria.step import Again
from pxp_fast.errors import ScoresError
from pxp_fast.scores_samples import SampleTables

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def one_by_one(count):
    """Images of a double-precision network, a batch for each."""
    return batches(*[1] * count)


@pytest.mark.parametrize("network", [cnn, vit])
def test_scores_of_some_images_are_those_of_scoring_them_alone(network):
    model, data = network(), one_by_one(9)
    whole = pxp.score(model, data, per_sample=True, per_class=True)
    for indices in ([0, 1, 2], [8, 3, 5, 3]):  # one may count twice
        alone = pxp.score(model, [data[i] for i in indices], per_sample=True, per_class=True)
        found = whole.for_samples(indices)
        for name in ("totals", "class_totals", "class_samples", "sample_table", "sample_labels"):
            assert torch.equal(getattr(found, name), getattr(alone, name)), name
        assert found.samples == len(indices) and found.header.data == {"for_samples": indices}
        assert torch.equal(found.values(), alone.values())


def test_batches_change_scores_of_some_images_by_rounding_alone():
    model, (images, labels) = cnn(), batches(11)[0]
    whole = pxp.score(model, list(zip(images.split(4), labels.split(4), strict=True)), per_sample=True)
    indices = torch.tensor([9, 0, 4, 6])
    alone = pxp.score(model, [(images[indices], labels[indices])])
    torch.testing.assert_close(whole.for_samples(indices).totals, alone.totals, rtol=1e-12, atol=1e-16)
    assert torch.equal(whole.sample_labels, labels)
    assert torch.equal(whole.totals, whole.for_samples(range(11)).totals)
    with torch.inference_mode():
        again = pxp.score(model, [(images, labels)] * 30, per_sample=True)  # more than room was made for
    assert len(again.sample_table) == 330 and not again.sample_table.is_inference()
    table = Relevance(model, images).run(images, labels, "bounded")
    torch.testing.assert_close(whole.sample_table, table.transpose(0, 1), rtol=1e-11, atol=1e-16)


def test_reduced_precision_is_kept_as_it_was_added():
    model, data = cnn(dtype=torch.float32), batches(4, 3, dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        whole = pxp.score(model, data, per_sample=True, dtype=dtype)
        assert whole.sample_table.dtype == torch.float32
        assert torch.equal(whole.for_samples(range(4)).totals, pxp.score(model, data[:1], dtype=dtype).totals)


def test_classes_are_told_apart_by_their_images_too():
    model, data = cnn(), one_by_one(9)
    apart = pxp.score(model, data, per_class=True)
    found = pxp.score(model, data, per_sample=True)
    keep = [0, 3]
    torch.testing.assert_close(found.for_classes(keep).totals, apart.for_classes(keep).totals, rtol=1e-12, atol=1e-16)
    assert found.for_classes(keep).header == apart.for_classes(keep).header
    assert torch.equal(found.for_classes(keep).sample_labels.unique(), torch.tensor(keep))
    with pytest.raises(ScoresError, match="choose from the 3 classes that have images: 0, 2, 3"):
        found.for_classes([7])


@pytest.mark.parametrize("recorder", [Again, Traced])
def test_recorded_steps_leave_the_same_tables(recorder):
    data = batches(4, 4, 4, 3, 4, 1)
    criterion = Relevance(cnn(), data[0][0])
    units = sum(group.count for group in criterion.units)
    kept = []
    for own in (None, recorder()):
        step = Step(criterion, recorder=own, tables=SampleTables(units, torch.float64, 7))
        for images, labels in data:
            step(images, labels)
        kept.append((step.tables.finish(), step.labels()))
    torch.testing.assert_close(*(table for table, _ in kept), rtol=1e-12, atol=1e-16)
    assert torch.equal(*(labels for _, labels in kept))
    assert torch.equal(kept[0][1], torch.cat([labels for _, labels in data]))


@cuda
@pytest.mark.parametrize("network", [cnn, vit])
def test_replayed_steps_leave_the_tables_of_eager_ones(network):
    data = batches(4, 4, 4, 4, 3, 4, 1, 4, 4, device="cuda", dtype=torch.float32)
    model = network("cuda", torch.float32)
    criterion = Relevance(model, data[0][0])
    units = sum(group.count for group in criterion.units)
    kept = []
    for own in (Again(), CudaGraphs(criterion.program.device)):
        step = Step(criterion, recorder=own, tables=SampleTables(units, torch.float32))
        for images, labels in data:
            step(images, labels)
        kept.append(step.tables.finish())
    assert torch.equal(*kept)
    scores = pxp.score(model, data, per_sample=True)
    assert torch.equal(scores.for_samples(range(scores.samples)).totals, scores.totals)


def test_tables_of_any_number_of_images_are_taken():
    parts = [torch.randn(2, count, 5) for count in (100, 200, 3, 400)]
    for expected in (None, 1, 703, 2000):
        tables = SampleTables(5, torch.float32, expected)
        for part in parts:
            tables.add(part)
        found = tables.finish()
        assert torch.equal(found, torch.cat(parts, 1).transpose(0, 1)) and found.is_contiguous()


def test_a_file_brings_the_tables_back(tmp_path):
    path = tmp_path / "scores.safetensors"
    paths = [f"{position}.png" for position in range(9)]
    scores = pxp.score(cnn(), batches(9), per_sample=True, data={"paths": paths})
    scores.save(path)
    assert path.stat().st_size > 9 * 2 * 24 * 8
    loaded = pxp.Scores.load(path)
    assert torch.equal(loaded.sample_table, scores.sample_table)
    assert torch.equal(loaded.sample_labels, scores.sample_labels)
    part = loaded.for_samples([4, 1])
    assert part.header.data == {"paths": ["4.png", "1.png"], "for_samples": [4, 1]}
    assert torch.equal(part.totals, scores.for_samples([4, 1]).totals)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    scores = pxp.score(cnn(), batches(9), per_sample=True)
    for damage in (
        {"sample_labels": None},
        {"sample_table": None},
        {"sample_table": torch.zeros(8, 2, 24)},
        {"sample_table": torch.zeros(9, 2, 24, dtype=torch.float16)},
        {"sample_labels": torch.zeros(9)},
    ):
        dataclasses.replace(scores, **damage).save(tmp_path / "scores.safetensors")
        with pytest.raises(ScoresError, match="scores.safetensors holds sample_table and sample_labels"):
            pxp.Scores.load(tmp_path / "scores.safetensors")


def test_images_that_did_not_score_cannot_be_asked_for():
    scores = pxp.score(cnn(), batches(9), per_sample=True)
    for indices in ([], [9], [-1], [True, False]):
        with pytest.raises(ScoresError, match="one or more positions of the 9 images that scored, 0 ... 8"):
            scores.for_samples(indices)
    with pytest.raises(ScoresError, match="whole numbers"):
        scores.for_samples(["a"])
    with pytest.raises(ScoresError, match="per_sample=True"):
        dataclasses.replace(scores, sample_table=None, sample_labels=None).for_samples([0])

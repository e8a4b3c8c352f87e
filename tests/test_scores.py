"""Scores: PXP's aggregation by brute force over single images, the file, and what it refuses."""

import dataclasses
import json

import pytest
import safetensors
import torch
from oracles.definition import Definition
from oracles.explicit_vit import from_timm
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import pxp_fast as pxp
from pxp_fast import ops
from pxp_fast.errors import DataError, PxpError, ScoresError
from pxp_fast.scores import ScoresHeader


@pytest.fixture
def cnn():
    """A small convolutional classifier with an MLP on top, and 7 labelled images."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip
    images, labels = pictures(7, 10, classes=4)
    return randomise(model, pictures(16, 10, seed=1)[0]).double(), images.double(), labels


def batches(images, labels, *sizes):
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def per_image(model, images, labels, initial="bounded") -> dict[str, torch.Tensor]:
    """Relevance maps [N, units, positions] of the filters and neurons of `cnn`, from single images."""
    maps = {"0": [], "4": [], "7": []}
    for image, label in zip(images, labels, strict=True):
        found = Definition(model)(image[None], label[None], initial)
        for name, kept in maps.items():
            kept.append(found.at[name].flatten(2) if found.at[name].dim() == 4 else found.at[name].unsqueeze(-1))
    return {name: torch.cat(kept) for name, kept in maps.items()}


AGGREGATIONS = {
    # magnitude, absolute -> the mean over images of ...
    (True, "sample"): lambda r, kind: r.sum(2).abs(),
    (True, "token"): lambda r, kind: r.abs().sum(2),
    (True, "pxp"): lambda r, kind: r.sum(2).abs() if kind == "filter" else r.abs().sum(2),
    (False, "pxp"): lambda r, kind: r.sum(2),
}


@pytest.mark.parametrize(("magnitude", "absolute"), AGGREGATIONS)
def test_aggregation_is_what_brute_force_over_single_images_says(cnn, magnitude, absolute):
    model, images, labels = cnn
    scores = pxp.score(model, batches(images, labels, 3, 1, 3))
    assert scores.samples == 7
    truth = per_image(model, images, labels)
    assert {g.name: g.kind for g in scores.units} == {"0": "filter", "4": "filter", "7": "neuron"}
    whole = scores.values(magnitude=magnitude, absolute=absolute)
    assert whole.dtype == torch.float64
    offset = 0
    for group in scores.units:
        expected = AGGREGATIONS[magnitude, absolute](truth[group.name], group.kind).mean(0)
        found = scores.of(group.name, magnitude=magnitude, absolute=absolute)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-15)
        torch.testing.assert_close(whole[offset : offset + group.count], found, rtol=0, atol=0)
        offset += group.count
    assert offset == len(whole)


def test_heads_and_token_neurons_aggregate_as_pxp_does():
    torch.manual_seed(0)
    config = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 4}
    images, labels = pictures(3, 16, classes=4)
    model = randomise(VisionTransformer(**config), images).double()
    explicit = from_timm(model)
    heads, neurons = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 48, dtype=torch.float64)
    signed = torch.zeros(2, 48, dtype=torch.float64)
    for image, label in zip(images.double(), labels, strict=True):
        found = Definition(explicit)(image[None], label[None], "one")
        for block in range(2):
            for head in range(3):
                for query in range(17):
                    heads[block, head] += found.attention[block][0, head, query].sum().abs() / 3
            neurons[block] += found.at[f"blocks.{block}.fc1"][0].abs().sum(0) / 3
            signed[block] += found.at[f"blocks.{block}.fc1"][0].sum(0) / 3
    scores = pxp.score(model, batches(images.double(), labels, 2, 1), initial="one")
    for block in range(2):
        torch.testing.assert_close(scores.of(f"blocks.{block}.attn"), heads[block], rtol=1e-8, atol=0)
        torch.testing.assert_close(scores.of(f"blocks.{block}.mlp.fc1"), neurons[block], rtol=1e-8, atol=0)
        torch.testing.assert_close(
            scores.of(f"blocks.{block}.mlp.fc1", magnitude=False), signed[block], rtol=1e-8, atol=1e-15
        )


def test_only_the_kinds_asked_for_are_scored_and_their_scores_do_not_change(cnn):
    model, images, labels = cnn
    loader = batches(images, labels, 4, 3)
    everything, filters = pxp.score(model, loader), pxp.score(model, loader, units=["filter"])
    assert [g.name for g in filters.units] == ["0", "4"]
    for name in ("0", "4"):
        torch.testing.assert_close(filters.of(name), everything.of(name), rtol=1e-12, atol=0)


def test_batch_sizes_do_not_matter_and_runs_repeat_exactly(cnn):
    model, images, labels = cnn
    whole, single = pxp.score(model, batches(images, labels, 7)), pxp.score(model, batches(images, labels, *[1] * 7))
    torch.testing.assert_close(whole.totals, single.totals, rtol=1e-10, atol=1e-15)
    assert torch.equal(whole.totals, pxp.score(model, batches(images, labels, 7)).totals)


def test_the_logit_as_initial_relevance_weighs_the_samples(cnn):
    model, images, labels = cnn
    scores = pxp.score(model, batches(images, labels, 7), initial="logit")
    logits = model(images).gather(1, labels[:, None]).detach()
    truth = (per_image(model, images, labels, "one")["4"].sum(2) * logits).abs().mean(0)
    torch.testing.assert_close(scores.of("4"), truth, rtol=1e-8, atol=0)


def test_by_default_an_image_whose_logit_is_small_counts_less(cnn):
    model, images, labels = cnn
    scores = pxp.score(model, batches(images, labels, 4, 3), per_sample=True)
    ones = pxp.score(model, batches(images, labels, 4, 3), per_sample=True, initial="one")
    logits = model(images).detach()
    at = logits.gather(1, labels[:, None]).abs()
    weight = at / at.maximum(logits.square().mean(1, keepdim=True).sqrt())
    assert weight.min() < 0.5 and weight.max() == 1
    truth = ones.sample_table * weight.unsqueeze(1)
    torch.testing.assert_close(scores.sample_table, truth, rtol=1e-10, atol=0)
    torch.testing.assert_close(scores.totals[ops.SAMPLE_ABSOLUTE], truth[:, 0].abs().sum(0), rtol=1e-10, atol=0)
    assert (scores.header.initial, ones.header.initial) == ("bounded", "one")


def test_a_file_brings_everything_back(cnn, tmp_path):
    model, images, labels = cnn
    data = {"folder": "pictures", "classes": [0, 1, 2, 3]}
    scores = pxp.score(model, batches(images, labels, 7), model_name="tiny", data=data)
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    loaded = pxp.Scores.load(path, model_name="tiny")
    assert torch.equal(loaded.totals, scores.totals)
    assert loaded.units == scores.units and loaded.samples == scores.samples == 7
    header = loaded.header
    assert header == scores.header
    assert (header.model, header.data, header.samples, header.initial) == ("tiny", data, 7, "bounded")
    groups = dict.fromkeys(("low", "mid", "high", "fully_connected", "softmax"), "epsilon")
    assert header.composite == {"name": "epsilon", "stabilizer": 1e-6} | groups
    assert header.versions["torch"] == torch.__version__
    assert (header.dtype, header.device) == ("float64", "cpu")
    assert torch.equal(loaded.values(), scores.values())
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]


def test_scores_of_classes_are_those_of_scoring_their_images_alone(cnn, tmp_path):
    model, images, labels = cnn
    labels = labels.clone()
    labels[labels == 2] = 1  # a class without images
    scores = pxp.score(model, batches(images, labels, 3, 1, 3), per_class=True, data={"folder": "pictures"})
    plain = pxp.score(model, batches(images, labels, 3, 1, 3))
    assert torch.equal(scores.totals, plain.totals) and plain.class_totals is None
    assert scores.class_samples.tolist() == labels.bincount(minlength=4).tolist()
    torch.testing.assert_close(scores.class_totals.sum(0), scores.totals, rtol=1e-12, atol=1e-16)
    scores.save(tmp_path / "scores.safetensors")
    loaded = pxp.Scores.load(tmp_path / "scores.safetensors")
    assert torch.equal(loaded.class_totals, scores.class_totals)
    assert torch.equal(loaded.class_samples, scores.class_samples)
    for keep in ({0}, {1, 3}, set(labels.tolist())):
        chosen = sum(labels == label for label in keep).bool()
        alone = pxp.score(model, batches(images[chosen], labels[chosen], 1, int(chosen.sum()) - 1))
        found = loaded.for_classes(keep)
        assert found.samples == alone.samples == int(chosen.sum())
        torch.testing.assert_close(found.totals, alone.totals, rtol=1e-12, atol=1e-16)
        torch.testing.assert_close(found.values(), alone.values(), rtol=1e-12, atol=1e-16)
        assert found.header.data == {"folder": "pictures", "for_classes": sorted(keep)}
        assert found.units == scores.units and found.class_totals is None
    assert loaded.header.data == {"folder": "pictures"}
    # What remains when a scores file is read by those who know no classes is what has always been there.
    with safetensors.safe_open(tmp_path / "scores.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("totals"), plain.totals)
        assert set(json.loads(file.metadata()["pxp_fast"])) == set(ScoresHeader.model_fields)


@pytest.mark.parametrize("keep", [[], [2], [0, 4], [-1]])
def test_classes_without_images_cannot_be_asked_for(cnn, keep):
    model, images, labels = cnn
    with pytest.raises(ScoresError, match="per_class=True"):
        pxp.score(model, batches(images, labels, 7)).for_classes(keep or [0])
    labels = labels.clone()
    labels[labels == 2] = 1
    scores = pxp.score(model, batches(images, labels, 7), per_class=True)
    with pytest.raises(ScoresError, match="choose from the 3 classes that have images: 0, 1, 3"):
        scores.for_classes(keep)


@pytest.mark.parametrize(
    "damage",
    [
        {"class_samples": None},
        {"class_totals": None},
        {"class_totals": torch.zeros(3, 4, 24, dtype=torch.float64)},
        {"class_totals": torch.zeros(4, 4, 24)},
        {"class_samples": torch.tensor([7, 0, 0, 1])},
        {"class_samples": torch.tensor([7.0, 0, 0, 0])},
        {"totals": torch.zeros(4, 23, dtype=torch.float64)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(cnn, tmp_path, damage):
    model, images, labels = cnn
    scores = pxp.score(model, batches(images, labels, 7), per_class=True)
    dataclasses.replace(scores, **damage).save(tmp_path / "scores.safetensors")
    with pytest.raises(ScoresError, match="scores.safetensors holds"):
        pxp.Scores.load(tmp_path / "scores.safetensors")


def test_a_loader_that_fails_or_is_left_early_is_closed(cnn):
    model, images, labels = cnn
    ends = []

    def loader(bad=None):
        try:
            yield from batches(images, labels, 3, 3, 1)[:2]
            if bad is None:
                raise OSError("the disk is gone")
            yield bad
            yield images, labels
        finally:
            ends.append("closed")

    with pytest.raises(OSError, match="the disk is gone"):
        pxp.score(model, loader())
    with pytest.raises(DataError, match="labels run from 0 to 4"):
        pxp.score(model, loader((images[:2], torch.tensor([0, 4]))))
    assert ends == ["closed", "closed"]


def test_a_file_for_another_model_is_refused_by_name(cnn, tmp_path):
    model, images, labels = cnn
    path = tmp_path / "scores.safetensors"
    pxp.score(model, batches(images, labels, 7), model_name="tiny").save(path)
    with pytest.raises(ScoresError, match="tiny") as caught:
        pxp.Scores.load(path, model_name="huge")
    assert "huge" in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_damaged_file_is_refused_by_its_path(cnn, tmp_path, damage):
    model, images, labels = cnn
    path = tmp_path / "scores.safetensors"
    pxp.score(model, batches(images, labels, 7), model_name="tiny").save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "text": b"not a tensor file at all"}[damage]
        )
    with pytest.raises(PxpError, match="scores.safetensors"):
        pxp.Scores.load(path)


def test_no_samples_is_an_error(cnn):
    with pytest.raises(PxpError):
        pxp.score(cnn[0], [])


@pytest.mark.parametrize(
    "options", [{}, {"exact": True}, {"dtype": torch.bfloat16}], ids=["quick", "exact", "bfloat16"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_an_error(cnn, value, options):
    model, images, labels = cnn
    images = images.clone()
    images[2, 0, 0, 0] = value
    with pytest.raises(DataError, match="1 of 7 images hold values that are not finite"):
        pxp.score(model, batches(images, labels, 7), **options)


def test_labels_outside_the_head_are_an_error(cnn):
    model, images, _ = cnn
    with pytest.raises(PxpError, match="4"):
        pxp.score(model, [(images, torch.full((7,), 4))])

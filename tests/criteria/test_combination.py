"""Combinations of scores: the weighted sum and the mean rank, worked out unit by unit."""

import dataclasses

import pytest
import torch
from criteria_networks import batch, cnn

import pxp_fast as pxp
from pxp_fast.criteria import combine
from pxp_fast.errors import DataError, PxpError, ScoresError

KINDS = ["filter"] * 15 + ["neuron"] * 7


def loader(count=9):
    images, _ = batch(count)
    labels = torch.arange(count) % 3
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


def normalised(values):
    """Each unit's value over the mean absolute value of its kind."""
    result = []
    for kind, value in zip(KINDS, values.tolist(), strict=True):
        kin = [abs(v) for k, v in zip(KINDS, values.tolist(), strict=True) if k == kind]
        result.append(value / (sum(kin) / len(kin)))
    return torch.tensor(result, dtype=torch.float64)


def ranks(values):
    """Each unit's share of the others of its kind that are below it, those equal counting half."""
    result = []
    for kind, value in zip(KINDS, values.tolist(), strict=True):
        kin = [v for k, v in zip(KINDS, values.tolist(), strict=True) if k == kind]
        result.append((sum(v < value for v in kin) + (sum(v == value for v in kin) - 1) / 2) / (len(kin) - 1))
    return torch.tensor(result, dtype=torch.float64)


OPTIONS = [{"magnitude": True}, {"magnitude": False}, {"absolute": "token"}]


@pytest.mark.parametrize("how", ["sum", "rank"])
def test_the_combination_is_that_of_the_scores_of_each(how):
    weights = {"lrp": 2, "taylor": 0.5, "magnitude": 1}
    options = {"criteria": weights, "how": how, "options": {"taylor": {"of": "loss"}, "magnitude": {"norm": "l1"}}}
    found = pxp.score(cnn(), loader(), criterion="combination", criterion_options=options)
    parts = [
        pxp.score(cnn(), loader(), criterion=name, criterion_options=options["options"].get(name)) for name in weights
    ]
    for chosen in OPTIONS:
        values = [part.values(**chosen) for part in parts]
        if how == "sum":
            truth = sum(w * normalised(v) for w, v in zip(weights.values(), values, strict=True))
        else:
            truth = sum(w * ranks(v) for w, v in zip(weights.values(), values, strict=True)) / 3.5
        torch.testing.assert_close(found.values(**chosen), truth, rtol=1e-10, atol=1e-12)
    assert found.samples == 9 and found.header.criterion == "combination"
    assert found.header.composite == parts[0].header.composite
    assert found.header.criterion_options == {
        "how": how,
        "criteria": [
            {"criterion": "lrp", "options": {}, "weight": 2.0},
            {"criterion": "taylor", "options": {"of": "loss"}, "weight": 0.5},
            {"criterion": "magnitude", "options": {"norm": "l1"}, "weight": 1.0},
        ],
    }


def test_ties_share_their_rank():
    one = pxp.score(cnn(), None, criterion="random", example=batch()[0])
    totals = torch.zeros_like(one.totals)
    totals[:, [3, 4]], totals[:, 9] = 1.0, -1.0  # twelve filters alike, two above them, one below; neurons all alike
    found = combine([dataclasses.replace(one, totals=totals)], how="rank").values()
    expected = [6.5 / 14] * 15 + [0.5] * 7
    expected[3] = expected[4] = 13.5 / 14
    expected[9] = 0.0
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_sums_tell_classes_apart_and_ranks_do_not():
    options = {"criteria": ["activation", "random"]}
    found = pxp.score(cnn(), loader(), criterion="combination", criterion_options=options, per_class=True)
    torch.testing.assert_close(found.class_totals.sum(0), found.totals, rtol=1e-12, atol=1e-14)
    assert found.class_samples.tolist() == [3, 3, 3, 0]
    activation = pxp.score(cnn(), loader(), criterion="activation", per_class=True)
    random = pxp.score(cnn(), loader(), criterion="random")
    sizes = activation.values() / normalised(activation.values())
    truth = activation.for_classes([1]).values() / sizes + normalised(random.values())
    torch.testing.assert_close(found.for_classes([1]).values(), truth, rtol=1e-10, atol=1e-12)
    truth = activation.contrast([0, 2], [1]).values() / sizes
    torch.testing.assert_close(found.contrast([0, 2], [1]).values(), truth, rtol=1e-10, atol=1e-12)
    options |= {"how": "rank"}
    with pytest.raises(PxpError, match="ranks in one class say nothing .*: score without classes"):
        pxp.score(cnn(), loader(), criterion="combination", criterion_options=options, per_class=True)
    ranked = combine([activation, random], how="rank")
    assert ranked.class_totals is None
    with pytest.raises(ScoresError, match="combine the scores of the classes"):
        ranked.contrast([0], [1])


def test_scores_that_do_not_belong_together_are_refused():
    whole = pxp.score(cnn(), loader())
    for other in (
        pxp.score(cnn(), loader()[:1], criterion="taylor"),
        pxp.score(cnn(), loader(), criterion="taylor", per_class=True),
        pxp.score(cnn(), loader(), criterion="taylor", units=["filter"]),
        pxp.score(cnn(), loader(), criterion="taylor", model_name="other"),
        pxp.score(cnn(), loader(), criterion="taylor", data={"paths": ["a", "b"]}),
    ):
        with pytest.raises(ScoresError, match="by taylor .* and by lrp .* do not belong together"):
            combine([whole, other])
    for weights in ([1], [1, float("nan")], [0, 0]):
        with pytest.raises(PxpError, match="2 scores are to be combined by the weights"):
            combine([whole, whole], weights)
    with pytest.raises(PxpError, match="how is 'product'"):
        combine([whole, whole], how="product")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"criteria": "lrp"}, "criteria to combine are 'lrp'; pass names and weights"),
        ({"criteria": {}}, "criteria to combine are {}"),
        ({"criteria": {"combination": 1}}, "and no combination"),
        ({"criteria": {"lrp": "much"}}, "the weight of lrp is 'much'"),
        ({"criteria": ["lrp", "tailor"]}, "criterion 'tailor' is not known"),
        ({"options": {"taylor": {}}}, "options are given for taylor, not among lrp, magnitude"),
        ({"options": {"lrp": {"of": "loss"}}}, "criterion lrp has no option of"),
        ({"weights": [1]}, "criterion combination has no option weights; choose from criteria, how, options"),
        ({"how": "product"}, "how is 'product'; choose one of sum, rank"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(PxpError, match=complaint):
        pxp.score(cnn(), loader(), criterion="combination", criterion_options=options)


def test_images_that_come_only_once_cannot_be_combined_over():
    with pytest.raises(DataError, match="this loader can be passed over only once"):
        pxp.score(cnn(), iter(loader()), criterion="combination")


@pytest.mark.parametrize("criterion", ["combination", "magnitude"])
@pytest.mark.parametrize("wish", [{"per_sample": True}, {"until_stable": pxp.UntilStable((0.3,), 0.9)}])
def test_what_needs_scores_of_single_images_is_refused_where_there_are_none(criterion, wish):
    with pytest.raises(
        PxpError, match=f"criterion {criterion} has no scores of single images: leave {next(iter(wish))}"
    ):
        pxp.score(cnn(), loader(), criterion=criterion, **wish)

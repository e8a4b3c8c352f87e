"""Activation, magnitude, random: their definitions written out on the networks themselves."""

import pytest
import torch
from criteria_networks import at_modules, batch, cnn, folding, heads, vit
from oracles.engine import by_unit
from oracles.explicit_vit import from_timm

import pxp_fast as pxp
from pxp_fast.criteria import criterion
from pxp_fast.errors import DataError, PxpError, ScoresError


def means(at):
    """Means over positions, signed and absolute, of ``[N, U, positions]``."""
    return torch.stack((at.mean(2), at.abs().mean(2)))


@pytest.mark.parametrize("at", ["activation", "output"])
def test_activation_is_the_mean_over_positions(at):
    model, (images, labels) = cnn(), batch()
    values, _ = at_modules(model, images, labels)
    found = criterion("activation", model, images, at=at)
    sums = by_unit(found, found.run(images, labels))
    after = (torch.relu, torch.nn.functional.gelu) if at == "activation" else (lambda x: x, lambda x: x)
    truth = {
        "left": after[0](values["norm"]).flatten(2),
        "right": values["right"].flatten(2),  # read by a sum, like the next
        "inner": values["inner_norm"].flatten(2),
        "mlp": after[1](values["mlp"]).unsqueeze(-1),
    }
    for unit, expected in truth.items():
        torch.testing.assert_close(sums[unit], means(expected), rtol=1e-10, atol=1e-14)


def test_activation_of_a_transformer_counts_every_token_of_the_last_block_too():
    model, (images, labels) = vit(), batch()
    values, _ = at_modules(from_timm(model), images, labels)
    found = criterion("activation", model, images)
    sums = by_unit(found, found.run(images, labels))
    for block in range(2):
        name = f"blocks.{block}"
        truth = {
            f"{name}.mlp.fc1": torch.nn.functional.gelu(values[f"{name}.fc1"]).transpose(1, 2),
            f"{name}.mlp.fc2": values[f"{name}.fc2"].transpose(1, 2),
            f"{name}.attn": heads(values[f"{name}.attn.out.input"], 3).transpose(1, 2).flatten(2),
        }
        for unit, expected in truth.items():
            torch.testing.assert_close(sums[unit], means(expected), rtol=1e-10, atol=1e-14)


def test_activation_on_windows_is_the_mean_over_all_of_an_image_for_each_use():
    model, (images, labels) = folding(), batch()
    outputs = []
    model.shared.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(images)
    first, second = (o.detach().unflatten(0, (3, -1)).transpose(1, 2).flatten(2) for o in outputs)
    model.shared._forward_hooks.clear()
    found = criterion("activation", model, images)
    sums = by_unit(found, found.run(images, labels))["shared"]
    torch.testing.assert_close(sums, means(first.tanh()) + means(second.relu()), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("norm", "p"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_each_units_weights(norm, p):
    model = cnn()
    scores = pxp.score(model, None, criterion="magnitude", criterion_options={"norm": norm}, example=batch()[0])
    for unit in ("left", "right", "inner", "mlp"):
        weight = model.get_submodule(unit).weight.detach()
        expected = (weight.abs() ** p).flatten(1).sum(1) ** (1 / p)
        torch.testing.assert_close(scores.of(unit), expected)
        torch.testing.assert_close(scores.of(unit, magnitude=False), expected)
    model = vit().float()
    scores = pxp.score(model, [], criterion="magnitude", criterion_options={"norm": norm}, example=batch()[0])
    weight = model.blocks[1].attn.proj.weight.detach().double()
    expected = [(weight[:, 4 * h : 4 * h + 4].abs() ** p).sum() ** (1 / p) for h in range(3)]
    torch.testing.assert_close(scores.of("blocks.1.attn"), torch.stack(expected))


def test_random_scores_are_those_of_the_seed_and_uniform():
    images, _ = batch()
    scores = [
        pxp.score(vit(), None, criterion="random", criterion_options={"seed": seed}, example=images)
        for seed in (3, 3, 4)
    ]
    assert torch.equal(scores[0].totals, scores[1].totals)
    values = [one.values() for one in scores]
    assert len(values[0]) == 126 and not torch.isclose(values[0], values[2]).any()
    assert 0 <= values[0].min() < 0.1 < 0.9 < values[0].max() < 1


@pytest.mark.parametrize("name", ["random", "magnitude"])
def test_criteria_without_images_look_at_none_and_serve_every_choice_of_classes(name, tmp_path):
    model, images = cnn(), batch()[0]

    def loader():
        yield batch()
        raise AssertionError("one batch is enough to know what images look like")

    scores = pxp.score(model, loader(), criterion=name, per_class=True, data={"folder": "x"})
    assert scores.samples == 0 and scores.header.composite == {} and scores.header.criterion == name
    for units in (["filter"], ["neuron"]):
        part = pxp.score(model, None, criterion=name, units=units, example=images)
        assert {group.kind for group in part.units} == set(units)
    scores.save(tmp_path / "s")
    loaded = pxp.Scores.load(tmp_path / "s")
    assert loaded.header == scores.header and torch.equal(loaded.totals, scores.totals)
    assert torch.equal(loaded.for_classes([2, 0]).values(), scores.values())
    assert loaded.for_classes([2, 0]).header.data == {"folder": "x", "for_classes": [0, 2]}
    with pytest.raises(ScoresError, match=f"scores by {name} are from no images"):
        loaded.contrast([0], [1])
    removed = sum(len(group.removed) for group in pxp.plan(loaded, 0.5).groups)
    assert removed == 7 + 3  # of 15 filters and 7 neurons


def test_what_a_model_takes_must_be_known():
    model = cnn()
    with pytest.raises(DataError, match="Residual does not say what images it takes; pass a loader, or an example"):
        pxp.score(model, None, criterion="magnitude")
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    assert pxp.score(model, criterion="magnitude").samples == 0
    with pytest.raises(DataError, match="criterion taylor needs images"):
        pxp.score(model, criterion="taylor")
    with pytest.raises(DataError, match="the reference set is empty"):
        pxp.score(model, [], criterion="taylor")


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("tailor", {}, "criterion 'tailor' is not known; choose one of lrp, random, "),
        ("taylor", {"off": "loss"}, "criterion taylor has no option off; choose from of"),
        ("lrp", {"of": "loss"}, "criterion lrp has no option of; it has none"),
        ("taylor", {"of": "probability"}, "of is 'probability'; choose one of logit, loss"),
        ("activation", {"at": "input"}, "at is 'input'; choose one of activation, output"),
        ("magnitude", {"norm": "l3"}, "norm is 'l3'; choose one of l1, l2"),
        ("integrated-gradients", {"form": "mean"}, "form is 'mean'; choose one of influence, conductance"),
        ("random", {"seed": -1}, "seed is -1; pass a whole number"),
        ("random", {"seed": 1 << 64}, "seed is 18446744073709551616; pass a whole number .* below 2"),
        ("combination", {"criteria": [["lrp"]]}, "criteria to combine are .*; pass names and weights"),
        ("combination", {"criteria": {"lrp": 10**400}}, "the weight of lrp is 1000.*; pass a number"),
        ("combination", {"criteria": 3}, "criteria to combine are 3"),
        ("combination", {"criteria": "lrp"}, "criteria to combine are 'lrp'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(name, options, complaint):
    with pytest.raises(PxpError, match=complaint):
        pxp.score(cnn(), [batch()], criterion=name, criterion_options=options)


@pytest.mark.parametrize("name", ["taylor", "activation", "magnitude"])
def test_only_relevance_starts_from_a_logit(name):
    with pytest.raises(PxpError, match="initial is 'logit'"):
        pxp.score(cnn(), [batch()], criterion=name, initial="logit")
    found = [pxp.score(cnn(), [batch()], criterion=name, **given) for given in ({}, {"initial": "one"})]
    assert torch.equal(found[0].totals, found[1].totals) and found[0].header == found[1].header


def test_of_a_combination_relevance_alone_takes_the_initial_relevance():
    found = pxp.score(cnn(), [batch()], criterion="combination", initial="logit")
    parts = [
        pxp.score(cnn(), [batch()], criterion=name, **given)
        for name, given in (("lrp", {"initial": "logit"}), ("magnitude", {}))
    ]
    assert torch.equal(found.totals, pxp.criteria.combine(parts).totals) and found.header.initial == "logit"
    with pytest.raises(PxpError, match="initial is 'logit', but criterion magnitude starts from no relevance"):
        options = {"criteria": ["magnitude", "taylor"]}
        pxp.score(cnn(), [batch()], criterion="combination", criterion_options=options, initial="logit")

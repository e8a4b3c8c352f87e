"""Every operator with a rule, in small random networks, against relevance propagation written from its definition.

Each network puts the operator between a first convolution and a classifier. The relevance of every input pixel and
unit must be the definition's in float64, so the operator's own rule, and whatever the engine merges or skips, is right.
"""

import pytest
import torch
from oracles.definition import Definition
from oracles.engine import by_unit, relative_l1, unit_sums
from oracles.networks import pictures, randomise
from oracles.operators import IMAGE_OPERATORS, TOKEN_OPERATORS, Sandwich, Tokens, build_network
from torch import nn

from pxp_fast.criteria import Relevance, attribute

CASES = [pytest.param(Sandwich, build, id=name) for name, build in IMAGE_OPERATORS.items()]
CASES += [pytest.param(Tokens, build, id=f"tokens: {name}") for name, build in TOKEN_OPERATORS.items()]


@pytest.mark.parametrize(("frame", "build"), CASES)
def test_operator_follows_its_definition(frame, build):
    model, images, labels = build_network(frame, build)
    truth = Definition(model)(images, labels)

    found = attribute(model, images, labels)
    assert found.shape == images.shape
    assert relative_l1(found, truth.input) < 1e-9

    relevance = Relevance(model, images)
    sums = by_unit(relevance, relevance.run(images, labels))
    for group in relevance.units:
        if group.kind == "head":
            per_query = truth.attention[0].sum(-1)
            expected = torch.stack((per_query.sum(-1), per_query.abs().sum(-1)))
        else:
            at = truth.at[group.name]
            at = at.flatten(2) if group.kind == "filter" else at.unsqueeze(1).flatten(1, -2).transpose(1, 2)
            expected = torch.stack((at.sum(2), at.abs().sum(2)))
        assert relative_l1(sums[group.name], expected) < 1e-9, group.name


@pytest.mark.parametrize("initial", ["logit", "bounded"])
def test_initial_relevance_scales_every_sample(initial):
    model, images, labels = build_network(Sandwich, IMAGE_OPERATORS["sum bn relu"])
    logits = model(images)
    small = logits.gather(1, labels[:, None])[:, 0].abs() < logits.square().mean(1).sqrt()
    assert small.any() and not small.all()  # so that both cases of "bounded" occur
    truth = Definition(model)(images, labels, initial=initial)
    sums = unit_sums(model, images, labels, initial=initial)
    assert relative_l1(sums["stem"][0], truth.at["stem"].sum((2, 3))) < 1e-9


def test_the_input_gate_is_not_a_constant_below_the_first_unit():
    """x * sigmoid(conv(x)): x lies below every unit, yet it takes its half of the product's relevance."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.act, self.conv, self.head = (
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Sigmoid(),
                nn.Conv2d(3, 6, 3),
                nn.Linear(6, 5),
            )

        def forward(self, x):
            return self.head(self.conv(x * self.act(self.gate(x))).mean((2, 3)))

    torch.manual_seed(0)
    images, labels = pictures(3, 9, classes=5)
    model = randomise(Gated(), images).double()
    truth = Definition(model)(images.double(), labels)
    sums = unit_sums(model, images.double(), labels)
    assert relative_l1(sums["gate"][0], truth.at["gate"].sum((2, 3))) < 1e-9


def test_the_first_unit_may_lie_beside_others_that_are_not_below_it():
    """Two branches from the image: the second is not below the first, and gets its relevance all the same."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.ReLU()
            self.c, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.c(torch.cat((self.relu(self.a(x)), self.relu(self.b(x))), 1)).mean((2, 3)))

    torch.manual_seed(0)
    images, labels = pictures(3, 9, classes=5)
    model = randomise(Branches(), images).double()
    truth = Definition(model)(images.double(), labels)
    sums = unit_sums(model, images.double(), labels)
    assert sums.keys() == {"a", "b", "c"}
    for name, found in sums.items():
        assert relative_l1(found[0], truth.at[name].sum((2, 3))) < 1e-9


def test_a_layer_that_is_used_twice_is_one_group_and_its_uses_add_up():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.relu(self.again(self.relu(self.again(self.relu(self.stem(x))))))
            return self.head(x.mean((2, 3)))

    class Unrolled(Recurrent):
        def __init__(self, shared: Recurrent) -> None:
            super().__init__()
            self.stem, self.first, self.second, self.head = (
                shared.stem,
                shared.again,
                nn.Conv2d(6, 6, 3, padding=1),
                shared.head,
            )
            self.second.load_state_dict(shared.again.state_dict())
            del self.again

        def forward(self, x):
            x = self.relu(self.second(self.relu(self.first(self.relu(self.stem(x))))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    images, labels = pictures(3, 9, classes=5)
    model = randomise(Recurrent(), images).double()
    truth = Definition(Unrolled(model).double())(images.double(), labels).at
    sums = unit_sums(model, images.double(), labels)
    assert sums.keys() == {"stem", "again"}
    assert relative_l1(sums["again"][0], (truth["first"] + truth["second"]).sum((2, 3))) < 1e-9
    assert relative_l1(sums["stem"][0], truth["stem"].sum((2, 3))) < 1e-9

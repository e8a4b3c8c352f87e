"""Units that can be cut out alone: what is said of them, against cutting each of them out."""

import pytest
import torch
import torch.nn.functional as F
from oracles.networks import pictures, randomise
from test_ranking import Block
from torch import nn

import pxp_fast as pxp
from pxp_fast.plan import Plan, PlannedGroup


class Squeezed(nn.Module):
    """Expansion, depthwise convolution, gate of all channels, projection beside a shortcut."""

    def __init__(self, width=4, inner=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.expand, self.norm1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.reduce, self.gate = nn.Conv2d(inner, 3, 1), nn.Conv2d(3, inner, 1)
        self.project, self.norm3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        y = F.silu(self.norm2(self.depthwise(F.silu(self.norm1(self.expand(x))))))
        y = y * torch.sigmoid(self.gate(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return self.head((x + self.norm3(self.project(y))).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in groups between two others, and one whose outputs are put beside its input."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.Conv2d(12, 5, 3)
        self.norm4, self.conv4 = nn.BatchNorm2d(17), nn.Conv2d(17, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = torch.cat((x[:, :, 1:-1, 1:-1], self.conv3(x)), 1)
        return self.head(F.relu(self.conv4(F.relu(self.norm4(x)))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Tokens, attention of two heads, and an MLP whose two halves multiply."""

    def __init__(self, width=8, inner=5):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 2)
        self.one, self.other, self.out = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return self.head((x + self.out(F.silu(self.one(y)) * self.other(y))).mean(1))


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), Block(5, 4), nn.Conv2d(5, 1, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def one_of_each_part(parts, count):
    """Units that go together: alone, or the nth of every part."""
    if parts is None:
        return [(unit,) for unit in range(count)]
    own = [(parts == part).nonzero().flatten().tolist() for part in range(int(parts.max()) + 1)]
    return list(zip(*own, strict=True))


@pytest.mark.parametrize("build", [plain, Squeezed, Grouped, Gated])
def test_a_unit_is_removable_if_it_can_be_cut_out_alone(build):
    images, _ = pictures(4, 12, classes=3)
    model = randomise(build(), images).double()
    images = images.double()
    slimmer = pxp.Slimmer(model, images)
    groups = pxp.score(model, criterion="random", example=images).units
    found, parts = slimmer.removable(groups), slimmer.parts(groups)
    assert set(parts) == ({"conv1", "conv2"} if build is Grouped else set())
    for group in groups:
        for units in one_of_each_part(parts.get(group.name), group.count):
            planned = PlannedGroup(
                name=group.name, kind=group.kind, count=group.count, removed=units, slices=group.slices
            )
            record = slimmer.slim(Plan(model="test", rate=0.1, groups=(planned,))).pxp_slim
            said = {bool(found[group.name][unit]) for unit in units}
            assert said == {record.cut == len(units)}, (group.name, units, record.cut)
    assert len({bool(one) for units in found.values() for one in units}) == (1 if build is Grouped else 2)


def test_a_plan_of_removable_units_leaves_no_zeros():
    for build in (plain, Squeezed, Grouped, Gated):
        images, labels = pictures(4, 12, classes=3)
        model = randomise(build(), images).double()
        scores = pxp.score(model, [(images.double(), labels)])
        slimmer = pxp.Slimmer(model, images.double())
        alone = slimmer.removable(scores.units)
        for rate in (0.2, 0.5, 0.9):
            plan = pxp.plan(scores, rate, units="removable", scope="global", slimmer=slimmer)
            record = slimmer.slim(plan).pxp_slim
            assert record.zeros == 0 and plan.removable
            assert 0 < plan.removed_count <= int(rate * sum(int(units.sum()) for units in alone.values()))
        assert all(len(group.removed) < group.count for group in plan.groups)


def test_every_group_of_a_convolution_loses_as_many_of_its_least_relevant():
    images, labels = pictures(4, 12, classes=3)
    model = randomise(Grouped(), images)
    scores, slimmer = pxp.score(model, [(images, labels)]), pxp.Slimmer(model, images)
    plan = pxp.plan(scores, 0.7, units=["removable"], scope="layer", slimmer=slimmer)
    planned = {group.name: set(group.removed) for group in plan.groups}
    for name, size, each in (("conv1", 2, 1), ("conv2", 3, 2)):
        values = scores.of(name).view(4, size)
        expected = {part * size + unit for part in range(4) for unit in values[part].argsort()[:each].tolist()}
        assert planned[name] == expected

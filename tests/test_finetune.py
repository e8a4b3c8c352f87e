"""Fine-tuning: it learns, it can be interrupted, and what is masked stays masked."""

import pytest
import torch
from torch import nn

import pxp_fast as pxp
from pxp_fast import demo
from pxp_fast.data import demo_images
from pxp_fast.loader import Loader, ShuffledLoader
from pxp_fast.models import load


class Net(nn.Module):
    """A norm, dropout and an unused feature: what training depends on beside weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 12, 5, 3), nn.BatchNorm2d(12), nn.Dropout(0.3)
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


def images(part, per_class):
    return demo_images(part, model=load("demo:vgg"), samples_per_class=per_class)


@pytest.fixture(scope="module")
def data():
    return ShuffledLoader(images("reference", 12), 32), Loader(images("test", 20), 100)


def network():
    torch.manual_seed(5)
    return Net().eval()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Interrupted(Exception):
    pass


def stop_after(epoch):
    def say(line):
        if line.startswith(f"epoch {epoch}:"):
            raise Interrupted

    return say


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_is_as_if_never_interrupted(data, tmp_path, optimizer):
    options = {"epochs": 4, "lr": 0.01, "warmup_epochs": 1, "optimizer": optimizer}
    whole, parts = network(), network()
    expected = pxp.finetune(whole, *data, **options)
    # It stops in the epoch after the last state that was written.
    for epoch in (2, 3):
        with pytest.raises(Interrupted):
            pxp.finetune(parts, *data, state=tmp_path / "state", say=stop_after(epoch), **options)
        parts = network()
        torch.rand(7)
    found = pxp.finetune(parts, *data, state=tmp_path / "state", **options)
    assert found == expected
    assert same(parts, whole)
    assert not same(parts, network())
    assert pxp.finetune(again := network(), *data, state=tmp_path / "state", **options) == expected
    assert same(again, whole)


def test_it_is_the_training_that_one_would_write(data):
    """Without schedule, decay and dropout: a loop with PyTorch's own optimiser."""
    loader, validation = data
    one, other = network(), network()
    for model in (one, other):
        model.drop.p = 0.0
    pxp.finetune(one, loader, validation, epochs=2, lr=0.01, scheduler="none", weight_decay=0.0, label_smoothing=0.2)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.0)
    best, kept = -1.0, None
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        other.train()
        for batch, labels in loader:
            optimizer.zero_grad()
            nn.CrossEntropyLoss(label_smoothing=0.2)(other(batch), labels).backward()
            optimizer.step()
        accuracy = pxp.evaluate(other, validation).accuracy
        if accuracy > best:
            best, kept = accuracy, {name: one.clone() for name, one in other.state_dict().items()}
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-4, atol=1e-5)


def test_cosine_and_warm_up(data):
    found = pxp.finetune(network(), *data, epochs=4, lr=0.01, warmup_epochs=1)
    rates = [epoch.lr for epoch in found.epochs]
    assert rates[0] == 0
    cosine = [0.005 * (1 + torch.cos(torch.tensor(torch.pi * e / 4)).item()) for e in range(5)]
    assert rates[2:] == pytest.approx(cosine[2:], abs=1e-9)


def test_it_learns_and_keeps_the_best(data):
    model = network()
    found = pxp.finetune(model, *data, epochs=12, lr=0.03)
    assert found.epochs[0].accuracy < 0.2
    assert found.accuracy == max(epoch.accuracy for epoch in found.epochs)
    assert found.accuracy > found.epochs[0].accuracy + 0.1
    assert pxp.evaluate(model, data[1]).accuracy == found.accuracy
    assert not any(module.training for module in model.modules())


def test_a_model_that_only_gets_worse_is_left_as_it_was(data):
    model = demo.network("vgg")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = pxp.finetune(model, *data, epochs=1, lr=0.5, optimizer="sgd")
    assert found.best == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_masked_stays_zero(data):
    model = demo.network("vgg")
    plan = pxp.plan(pxp.score(model, criterion="random", example=torch.zeros(1, 1, 28, 28)), 0.4)
    pxp.apply_mask(model, plan)
    pruned = pxp.evaluate(model, data[1]).accuracy
    found = pxp.finetune(model, *data, epochs=2, lr=1e-3, plan=plan)
    assert found.best > 0
    assert found.accuracy > pruned + 0.05
    for group in plan.groups:
        for piece in group.slices:
            assert not model.get_parameter(piece.parameter).movedim(piece.dim, 0)[list(group.removed)].any()


def test_a_slimmed_model_is_trained_like_any_other(data):
    model = demo.network("resnet")
    example = torch.randn(2, 1, 28, 28)
    plan = pxp.plan(pxp.score(model, criterion="random", example=example), 0.5)
    small = pxp.slim(model, plan, example)
    pruned = pxp.evaluate(small, data[1]).accuracy
    assert pxp.finetune(small, *data, epochs=2, lr=1e-3).accuracy > pruned + 0.05


def test_shuffled_images_are_all_there_in_another_order_every_epoch():
    dataset = images("reference", 4)
    loader = ShuffledLoader(dataset, 14, seed=3, flip=False)

    def pixels(epoch):
        loader.set_epoch(epoch)
        return torch.cat([batch for batch, _ in loader.pixels()])

    first, again, second = pixels(1), pixels(1), pixels(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    ordered = torch.cat([batch for batch, _ in Loader(dataset, 40).pixels()])
    assert sorted(map(bytes, first.numpy())) == sorted(map(bytes, ordered.numpy()))
    assert sum(len(labels) for _, labels in ShuffledLoader(dataset, 13)) == 39  # not a batch of the last one alone
    loader.flip = True
    mirrored = pixels(1)
    straight = (mirrored == first).flatten(1).all(1)
    assert torch.equal(torch.where(straight.view(-1, 1, 1, 1), mirrored, mirrored.flip(-1)), first)
    assert 5 < int(straight.sum()) < 35


def test_what_cannot_be_done_is_said(data, tmp_path):
    for options, message in (
        ({"optimizer": "nothing"}, "timm knows no optimizer 'nothing'"),
        ({"scheduler": "nothing"}, "scheduler is 'nothing'; choose one of cosine"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"warmup_epochs": 5}, "all 5 epochs are to warm up"),
    ):
        with pytest.raises(pxp.PxpError, match=message):
            pxp.finetune(network(), *data, **options)
    with pytest.raises(pxp.PxpError, match="the loss of epoch 1 is (nan|inf); a lower learning rate"):
        pxp.finetune(network(), *data, epochs=1, lr=1e30, optimizer="sgd")
    with pytest.raises(pxp.PxpError, match="a loader with a length"):
        pxp.finetune(network(), iter(()), data[1])


def test_a_state_of_something_else_is_refused(data, tmp_path):
    path = tmp_path / "state"
    pxp.finetune(network(), *data, epochs=1, state=path)
    with pytest.raises(pxp.PxpError, match="another fine-tuning .lr 0.0001 instead of 0.1.; give another place"):
        pxp.finetune(network(), *data, epochs=1, state=path, lr=0.1)
    with pytest.raises(pxp.PxpError, match="another model or plan"):
        pxp.finetune(demo.network("vgg"), *data, epochs=1, state=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pxp.PxpError, match="no intact state"):
        pxp.finetune(network(), *data, epochs=1, state=path)

"""The scoring step: what padding, recording and replaying must not change."""

import functools

import pytest
import torch
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pxp_fast as pxp
from pxp_fast.criteria import CudaGraphs, GraphWarning, Relevance, Step
from pxp_fast.criteria.step import Again

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Traced:
    """Records operators on tensors, as a CUDA graph does: what the host reads is refused, what it decides is frozen.

    `recorded` and `replayed` count.
    """

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, compute):
        self.recorded += 1
        graph = make_fx(compute)()

        def replay():
            self.replayed += 1
            graph()

        return replay


class Counted(Again):
    """As `Again`, noting the sizes recorded and, by size, how often each was repeated."""

    def __init__(self):
        self.repeats = {}

    def record(self, compute: functools.partial):
        size = len(compute.args[0])
        self.repeats[size] = 0

        def again():
            self.repeats[size] += 1
            compute()

        return again


def cnn(device="cpu", dtype=torch.float64):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip
    return randomise(model, pictures(16, 10, seed=1)[0]).to(device, dtype)


def vit(device="cpu", dtype=torch.float64):
    config = {"img_size": 10, "patch_size": 5, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 4}
    return randomise(VisionTransformer(**config), pictures(16, 10, seed=1)[0]).to(device, dtype)


def batches(*sizes, device="cpu", dtype=torch.float64):
    images, labels = pictures(sum(sizes), 10, classes=4)
    images, labels = images.to(device, dtype), labels.to(device)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def totals(criterion, data, **options):
    step = Step(criterion, **options)
    for images, labels in data:
        step(images, labels)
    return step


def by_hand(criterion, data, capacity):
    """Totals in which batches after the first are filled up to `capacity` here, and every number is added here."""
    result = torch.zeros(4, sum(group.count for group in criterion.units), dtype=torch.float64)
    for index, (images, labels) in enumerate(data):
        missing = capacity - len(images) if index else 0
        filled = torch.cat([images, images[:1].expand(missing, -1, -1, -1)])
        table = criterion.run(filled, torch.cat([labels, labels[:1].expand(missing)])).double().cpu()
        for n in range(len(images)):
            signed, absolute = table[:, n]
            result += torch.stack([signed, signed.abs(), absolute, signed * signed])
    return result


@pytest.mark.parametrize("recorder", [Again, Traced])
@pytest.mark.parametrize("network", [cnn, vit])
def test_ragged_batches_are_filled_up_and_the_filling_left_out(network, recorder):
    data = batches(4, 4, 4, 3, 4, 1)
    criterion = Relevance(network(), data[0][0])
    step = totals(criterion, data, recorder=recorder())
    assert step.samples == 20
    assert torch.equal(step.totals, by_hand(criterion, data, 4))
    plain = totals(criterion, data)
    torch.testing.assert_close(step.totals, plain.totals, rtol=1e-12, atol=1e-16)


def test_a_recorded_step_reads_nothing_on_the_host_and_makes_no_choice_there():
    data = batches(2, 2, 2, 2, 1)
    criterion = Relevance(cnn(), data[0][0])
    recorder = Traced()
    step = totals(criterion, data, recorder=recorder, initial="logit")
    assert (recorder.recorded, recorder.replayed) == (1, 4)
    torch.testing.assert_close(step.totals, totals(criterion, data, initial="logit").totals, rtol=1e-12, atol=1e-16)


def test_full_batches_give_the_same_bits_recorded_or_not():
    data = batches(5, 5, 5)
    criterion = Relevance(vit(), data[0][0])
    plain, again, traced = (totals(criterion, data, recorder=r) for r in (None, Again(), Traced()))
    assert torch.equal(plain.totals, again.totals) and torch.equal(plain.totals, traced.totals)


def test_a_size_is_recorded_when_it_comes_again_and_serves_all_smaller_ones():
    recorder = Counted()
    data = batches(3, 3, 2, 1, 5, 5, 4, 3, 6, 7, 6, 7, 7, 2, 9, 9)
    criterion = Relevance(cnn(), data[0][0])
    step = totals(criterion, data, recorder=recorder)
    # 3: recorded, for 3 2 1; 5: recorded, for 5 4; 3 goes to the 3; 6 is the third and last, 7 and 9 run as they are.
    assert recorder.repeats == {3: 5, 5: 2, 6: 1}
    assert step.samples == sum(len(images) for images, _ in data)
    torch.testing.assert_close(step.totals, totals(criterion, data).totals, rtol=1e-12, atol=1e-16)


def test_a_single_batch_is_not_recorded():
    recorder = Counted()
    totals(Relevance(cnn(), batches(3)[0][0]), batches(3), recorder=recorder)
    assert recorder.repeats == {}


@pytest.mark.parametrize("recorder", [None, Again()])
def test_totals_of_a_class_are_those_of_its_samples_alone(recorder):
    data = batches(4, 4, 4, 3)
    criterion = Relevance(cnn(), data[0][0])
    step = totals(criterion, data, per_class=True, recorder=recorder)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert step.class_samples().tolist() == [int((labels == label).sum()) for label in range(4)]
    for label in range(4):
        alone = totals(criterion, [(images[labels == label], labels[labels == label])])
        torch.testing.assert_close(step.class_totals[label], alone.totals, rtol=1e-12, atol=1e-16)
    assert torch.equal(step.totals, totals(criterion, data, recorder=recorder).totals)


def test_a_loader_may_use_its_buffers_again():
    data = batches(4, 4, 4, 4)
    criterion = Relevance(cnn(), data[0][0])
    step, images, labels = Step(criterion, per_class=True, recorder=Again()), *map(torch.clone, data[0])
    for batch in data:
        images.copy_(batch[0])
        labels.copy_(batch[1])
        step(images, labels)
    plain = totals(criterion, data, per_class=True)
    assert torch.equal(step.class_totals, plain.class_totals)
    assert torch.equal(step.class_samples(), plain.class_samples())


def test_batches_of_other_types_and_of_inference_mode_are_taken():
    data = batches(4, 4, 4, dtype=torch.float32)
    criterion = Relevance(cnn(dtype=torch.float64), data[0][0])
    with torch.inference_mode():
        step = totals(criterion, [(images + 0, labels + 0) for images, labels in data], recorder=Again())
    assert torch.equal(step.totals, totals(criterion, [(i.double(), y) for i, y in data]).totals)
    assert not step.totals.is_inference()


def test_empty_batches_count_for_nothing():
    data = batches(2, 2)
    criterion = Relevance(cnn(), data[0][0])
    empty = data[0][0][:0], data[0][1][:0]
    step = totals(criterion, [empty, data[0], empty, data[1], empty], recorder=Again(), per_class=True)
    assert step.samples == 4 and torch.equal(step.totals, totals(criterion, data).totals)


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", [cnn, vit])
def test_replays_give_the_bits_of_eager_steps(network, dtype):
    data = batches(4, 4, 4, 4, 3, 4, 1, device="cuda", dtype=torch.float32)
    criterion = Relevance(network("cuda", torch.float32), data[0][0], dtype=dtype)
    graphed = totals(criterion, data, recorder=CudaGraphs(criterion.program.device), per_class=True)
    eager = totals(criterion, data, recorder=Again(), per_class=True)
    assert torch.equal(graphed.totals, eager.totals)
    assert torch.equal(graphed.class_totals, eager.class_totals)
    assert torch.equal(graphed.totals.cpu(), by_hand(criterion, data, 4))


@cuda
def test_replays_do_not_wait_for_the_gpu():
    data = batches(*[4] * 6, 3, device="cuda", dtype=torch.float32)
    criterion = Relevance(cnn("cuda", torch.float32), data[0][0])
    step = totals(criterion, data[:2], recorder=CudaGraphs(criterion.program.device), per_class=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in data[2:]:
            step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(step.totals, totals(criterion, data, recorder=Again()).totals)


@cuda
def test_graphs_of_several_sizes_share_their_memory():
    data = batches(4, 4, 6, 6, 8, 8, 4, 6, 8, 5, 8, device="cuda", dtype=torch.float32)
    criterion = Relevance(vit("cuda", torch.float32), data[0][0])
    graphed = totals(criterion, data, recorder=CudaGraphs(criterion.program.device))
    assert torch.equal(graphed.totals, totals(criterion, data, recorder=Again()).totals)


@cuda
@pytest.mark.parametrize("unnoticed", [False, True], ids=["while warming up", "while capturing"])
def test_what_cannot_be_recorded_runs_and_is_warned_of_once(unnoticed):
    """Reading a value is refused before the capture; waiting for an event is noticed only then."""
    recorder = CudaGraphs(torch.device("cuda"))
    values = torch.zeros(3, device="cuda")

    def waits():
        values.add_(1)
        if unnoticed:
            torch.cuda.current_stream().record_event().synchronize()
        else:
            values.sum().item()

    with pytest.warns(GraphWarning, match="no CUDA graph") as caught:
        repeat = recorder.record(waits)
        again = recorder.record(waits)
    assert sum(warning.category is GraphWarning for warning in caught) == 1
    before = values.clone()
    repeat()
    again()
    assert torch.equal(values, before + 2)
    assert not torch.cuda.is_current_stream_capturing()
    # All is as if nothing had happened: memory, streams, and the next capture.
    sink = [torch.rand(1000, device="cuda") for _ in range(3)]
    repeat = CudaGraphs(torch.device("cuda")).record(lambda: values.mul_(2))
    before = values.clone()
    repeat()
    assert torch.equal(values, before * 2) and all(torch.isfinite(t).all() for t in sink)


@cuda
@pytest.mark.parametrize("network", [cnn, vit])
def test_scoring_is_the_same_with_and_without_graphs(network):
    data = batches(*[4] * 5, dtype=torch.float32)
    model = network("cuda", torch.float32)
    with_graphs, without = pxp.score(model, data), pxp.score(model, data, graph=False)
    assert torch.equal(with_graphs.totals, without.totals)

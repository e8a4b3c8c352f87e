"""Batches fetched ahead: their order, their errors, their end, and on a GPU their contents."""

import pytest
import torch

from pxp_fast import models
from pxp_fast.data import demo_images
from pxp_fast.loader import Loader, unprepared
from pxp_fast.prefetch import prefetch, run_ahead

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="copying to a GPU needs one")


def numbers(log, count, error_at=None):
    try:
        for number in range(count):
            if number == error_at:
                raise OSError(f"no number {number}")
            log.append(("taken", number))
            yield number
    finally:
        log.append("closed")


def logged(log, word):
    def note(number):
        log.append((word, number))
        return number

    return note


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_items_are_started_so_many_ahead_and_come_in_order(ahead):
    log = []
    for number in run_ahead(numbers(log, 5), logged(log, "started"), logged(log, "finished"), ahead):
        log.append(("used", number))
    assert [entry[1] for entry in log if entry[0] == "used"] == list(range(5))
    for number in range(5):
        last = min(number + ahead, 4)
        at = log.index(("finished", number))
        assert ("started", last) in log[:at]
        assert last == 4 or ("taken", last + 1) not in log[:at]
        assert log.index(("used", number)) == at + 1
    assert log.count("closed") == 1


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_where_its_item_would_have(ahead):
    log, used = [], []
    with pytest.raises(OSError, match="no number 3"):
        for number in run_ahead(numbers(log, 9, error_at=3), int, int, ahead):
            used.append(number)
    assert used == [0, 1, 2]

    def refuse(number):
        if number == 2:
            raise ValueError("not this one")
        return number

    used.clear()
    with pytest.raises(ValueError, match="not this one"):
        for number in run_ahead(numbers(log, 9), refuse, int, ahead):
            used.append(number)
    assert used == [0, 1]
    assert log.count("closed") == 2


def test_an_interruption_is_not_put_off():
    def interrupted():
        yield 0
        raise KeyboardInterrupt

    used = []
    with pytest.raises(KeyboardInterrupt):
        for number in run_ahead(interrupted(), int, int, 1):
            used.append(number)
    assert used == []


def test_stopping_early_closes_the_source():
    log = []
    fetched = run_ahead(numbers(log, 9), int, int, 2)
    assert next(fetched) == 0
    fetched.close()
    assert log[-1] == "closed" and ("taken", 3) not in log


def test_a_cpu_gets_the_batches_as_they_are_and_when_asked():
    log = []
    batches = [(torch.rand(2, 3), torch.tensor([0, 1])) for _ in range(3)]
    fetched = prefetch((batches[number] for number in numbers(log, 3)), torch.device("cpu"), torch.bfloat16)
    for number, batch in enumerate(fetched):
        assert batch is batches[number]
        assert log[-1] == ("taken", number)


def test_bytes_become_the_images_that_the_loader_yields():
    """Without a GPU when they are asked for, not before; twice, as the second pass is from memory."""
    part = demo_images("test", model=models.load("demo:vgg"), samples_per_class=2)
    loader = Loader(part, 8)
    for _ in range(2):
        raw, preparing = unprepared(loader)
        found = list(prefetch(raw, torch.device("cpu"), prepare=preparing(torch.device("cpu"))))
        assert [len(labels) for _, labels in found] == [8, 8, 4]
        for (images, labels), (expected, right) in zip(found, loader, strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, right)
            assert images.dtype == torch.float32
    assert {pixels.dtype for pixels, _ in loader.pixels()} == {torch.uint8}
    raw, preparing = unprepared(found)
    assert raw is found and preparing(torch.device("cpu"))(found[0][0]) is found[0][0]


@cuda
def test_a_gpu_normalises_to_the_bits_of_the_cpu():
    loader = Loader(demo_images("test", model=models.load("demo:vgg"), samples_per_class=2), 8)
    raw, preparing = unprepared(loader)
    device = torch.device("cuda")
    for (images, _), (expected, _) in zip(prefetch(raw, device, prepare=preparing(device)), loader, strict=True):
        assert torch.equal(images.cpu(), expected)


@cuda
@pytest.mark.parametrize("ahead", [1, 2])
def test_a_gpu_gets_the_same_values_whatever_becomes_of_the_buffers(ahead):
    """The loader writes over its one buffer, and the GPU is kept busy so that copies overtake computation."""
    generator = torch.Generator().manual_seed(0)
    expected = [(torch.rand(64, 1000, generator=generator), torch.full((64,), number)) for number in range(20)]

    def loader():
        images, labels = torch.empty(64, 1000), torch.empty(64, dtype=torch.int64)
        for batch in expected:
            images.copy_(batch[0])
            labels.copy_(batch[1])
            yield images, labels

    busy = torch.rand(2000, 2000, device="cuda")
    sums = []
    for images, labels in prefetch(loader(), torch.device("cuda"), torch.float32, ahead=ahead):
        assert images.device.type == labels.device.type == "cuda"
        for _ in range(10):
            busy = (busy @ busy).clamp_(-1, 1)
        sums.append((images.clone(), labels.clone()))
        del images, labels
    for (images, labels), (right, label) in zip(sums, expected, strict=True):
        assert torch.equal(images.cpu(), right) and torch.equal(labels.cpu(), label)


@cuda
def test_a_gpu_gets_narrow_images_and_no_wider_ones():
    images, labels = torch.rand(4, 3), torch.arange(4)
    for dtype, arrives in ((torch.bfloat16, torch.bfloat16), (torch.float64, torch.float32), (None, torch.float32)):
        (batch,) = prefetch([(images, labels)], torch.device("cuda"), dtype)
        assert batch[0].dtype == arrives
        assert torch.equal(batch[0].cpu(), images.to(arrives)) and torch.equal(batch[1].cpu(), labels)
    pixels = torch.randint(0, 255, (4, 3), dtype=torch.uint8)
    (batch,) = prefetch([(pixels, labels)], torch.device("cuda"), torch.bfloat16)
    assert torch.equal(batch[0].cpu(), pixels)
    there = images.cuda()
    (batch,) = prefetch([(there, labels)], torch.device("cuda"), torch.float32)
    assert batch[0] is there


@cuda
def test_fetching_does_not_wait_for_the_gpu():
    batches = [(torch.rand(8, 100), torch.arange(8)) for _ in range(6)]
    fetched = prefetch(batches, torch.device("cuda"), torch.bfloat16)
    next(fetched)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(fetched)) == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")

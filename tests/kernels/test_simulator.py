"""The simulator itself: what it must notice, or its word on the kernels would be worth nothing."""

import ctypes
import shutil

import pytest
import torch
from simulation import ORDERS, SimulationError, call

THREADS = 256


def fault(library, order, name, data):
    call(library, "fault", order, ctypes.c_char_p(name.encode()), data, data.numel())


def right(library, order, *, sums, after_writing=True, after_reading=True):
    """Whether the threads' exchange through shared memory, with these barriers, gives what it should."""
    data, steps = torch.arange(float(THREADS)), 4
    expected = data.clone()
    for _ in range(steps):
        expected = expected.sum() / 256 + torch.arange(THREADS) if sums else expected.roll(-33)
    call(library, "exchange", order, data, int(sums), steps, int(after_writing), int(after_reading))
    return torch.equal(data, expected)


@pytest.mark.parametrize("sums", [False, True])
def test_all_orders_agree_on_a_right_kernel(simulated, order, sums):
    assert right(simulated("faults"), order, sums=sums)


@pytest.mark.parametrize("sums", [False, True])
def test_a_missing_barrier_between_write_and_read(simulated, order, sums):
    assert not right(simulated("faults"), order, sums=sums, after_writing=False)


def test_a_missing_barrier_between_read_and_next_write(simulated, order):
    assert not right(simulated("faults"), order, sums=False, after_reading=False)


def test_the_warp_that_runs_ahead_finds_what_no_other_order_does(simulated):
    wrong = [order for order in ORDERS if not right(simulated("faults"), order, sums=True, after_reading=False)]
    assert wrong == ["skew"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two barriers", "different barriers"),
        ("barrier left out", "different barriers"),
        ("lane ends", "deadlock"),
        ("lane waits elsewhere", "deadlock"),
        ("lanes in two shuffles", "different exchanges"),
        ("half a mask", "whole warps"),
        ("store between packs", "multiple of 16"),
    ],
)
def test_errors(simulated, order, name, message):
    data = torch.zeros(4 * THREADS + 4)[:THREADS]
    library = simulated("faults")
    with pytest.raises(SimulationError, match=message):
        fault(library, order, name, data)
    # An error leaves nothing behind.
    data = torch.arange(float(THREADS))
    fault(library, order, "whole warps", data)
    assert torch.equal(data, torch.arange(THREADS).view(-1, 2).flip(1).flatten().float())


def test_shared_memory_starts_as_nan_in_every_block(simulated, order, tmp_path):
    """In every library of the process."""
    first = simulated("faults")
    second = ctypes.CDLL(shutil.copy(first._name, tmp_path / "second.so"))
    for library in (first, second):
        data = torch.zeros(2 * THREADS)
        fault(library, order, "shared of the block before", data)
        assert (data[:THREADS] == 1).all() and data[THREADS:].isnan().all()

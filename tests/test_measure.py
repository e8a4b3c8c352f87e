"""What networks cost: work against PyTorch's own counter, sizes against files, times by a clock that is made up."""

import statistics
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pxp_fast as pxp
from pxp_fast.errors import OutputError
from pxp_fast.measure import by_work, latency, measure, saved_bytes, spread
from pxp_fast.plan import Plan, PlannedGroup
from pxp_fast.units import ParameterSlice


def counted(model: nn.Module, images: torch.Tensor) -> int:
    """The work for one image as PyTorch counts it, attention's products included."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() // len(images)


def convolutions() -> tuple[nn.Module, str]:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(10, 4),
    ), "0"  # fmt: skip


def transformer() -> tuple[nn.Module, str]:
    import timm

    model = timm.create_model("test_vit", num_classes=4, img_size=32)
    return model, "blocks.0.mlp.fc1"


@pytest.mark.parametrize("build", [convolutions, transformer])
def test_parameters_work_and_size_are_those_of_the_networks_themselves(build, tmp_path):
    torch.manual_seed(0)
    model, layer = build()
    model.eval()
    weight = model.get_submodule(layer).weight
    slices = tuple(ParameterSlice(parameter=f"{layer}.{name}", dim=0) for name in ("weight", "bias"))
    group = PlannedGroup(
        name=layer,
        kind="neuron" if weight.dim() == 2 else "filter",
        count=len(weight),
        removed=(1, 2, 5),
        slices=slices,
    )
    images = torch.randn(2, 3, 32, 32)
    small = pxp.slim(model, Plan(model="m", rate=0.2, groups=(group,)), images)
    found = measure(model, small, small.pxp_slim, (3, 32, 32), batches=(2,), seconds=0.05)
    assert found.flops == (counted(model, images), counted(small, images))
    assert found.promised == found.flops[0] / found.flops[1] > 1
    assert found.parameters == tuple(sum(p.numel() for p in one.parameters()) for one in (model, small))
    sizes = []
    for one in (model, small):
        save_file({name: tensor.contiguous() for name, tensor in one.state_dict().items()}, tmp_path / "kept")
        sizes.append((tmp_path / "kept").stat().st_size)
    assert found.bytes == tuple(sizes)
    (timed,) = found.latency
    assert timed.batch == 2 and timed.rounds >= 3 and 0 <= timed.faster <= timed.rounds
    assert (found.device, found.threads, found.precision) == ("cpu", torch.get_num_threads(), "float32")


def test_weights_that_are_shared_are_on_disk_once(tmp_path):
    model = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50))
    apart = saved_bytes(model, tmp_path)
    model[2].weight = model[0].weight
    assert apart - 50 * 50 * 4 - 100 < saved_bytes(model, tmp_path) < apart - 50 * 50 * 4 + 200
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match="cannot write the network into .*nowhere.*free space"):
        saved_bytes(nn.Linear(2, 2), tmp_path / "nowhere")


class Clock:
    """Time that passes only when networks run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes the next of its `durations` each time, over and over."""

    def __init__(self, name: str, clock: Clock, durations: list[float]) -> None:
        super().__init__()
        self.name, self.clock, self.durations, self.count = name, clock, durations, 0

    def forward(self, images):
        assert not self.training
        self.clock.now += self.durations[self.count % len(self.durations)]
        self.count += 1
        self.clock.calls.append(self.name)
        return images


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def test_networks_take_turns_and_the_first_runs_do_not_count(clock):
    before, after = Slow("b", clock, [0.05]), Slow("a", clock, [0.02])
    found = latency(before, after, torch.zeros(3, 1))
    assert (found.batch, found.rounds, found.faster) == (3, 15, 15)
    assert (found.before.median, found.after.median) == pytest.approx((0.05, 0.02))
    assert found.speed_up.median == pytest.approx(2.5)
    assert "".join(clock.calls[:4]) == "bbaa"
    assert "".join(clock.calls[4:]) == ("baab" * 8)[:30]


def test_time_is_told_apart_by_whether_flops_count_the_work(clock, monkeypatch):
    import timm

    model = timm.create_model("test_vit", num_classes=4, img_size=32)
    seen = []

    def ticking(function, *args, **kwargs):
        """Every operator takes a second, and is noted."""
        seen.append(function)
        clock.now += 1
        return run(function, *args, **kwargs)

    run = torch._ops.OpOverload.__call__
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", ticking)
    found = by_work(model, model, torch.zeros(1, 3, 32, 32), runs=1)
    names = [function.overloadpacket.__name__ for function in seen]
    products = sum(name in ("addmm", "mm", "bmm", "convolution") or "scaled_dot" in name for name in names)
    assert products > 8
    assert found.counted == (products / 2,) * 2
    assert found.other == (len(names) / 2 - products / 2,) * 2


def test_quick_networks_are_run_until_a_turn_can_be_timed(clock):
    before, after = Slow("b", clock, [0.004]), Slow("a", clock, [0.0015])
    found = latency(before, after, torch.zeros(1, 1))
    assert (found.before.median, found.after.median) == pytest.approx((0.004, 0.0015))
    assert (before.count, after.count) == (2 + 15 * 3, 2 + 15 * 7)


def test_unsteady_times_are_measured_more_often_and_slow_networks_less(clock):
    unsteady = latency(Slow("b", clock, [0.03]), Slow("a", clock, [0.02, 0.031, 0.04]), torch.zeros(1, 1), seconds=9)
    assert unsteady.rounds == 60 and unsteady.faster == 20
    slow = latency(Slow("b", clock, [2.0]), Slow("a", clock, [1.0]), torch.zeros(1, 1), seconds=6)
    assert slow.rounds == 3


def test_a_spread_is_the_median_and_the_quartiles():
    values = np.random.default_rng(0).random(17).tolist()
    found = spread(values)
    assert (found.low, found.median, found.high) == pytest.approx(tuple(np.percentile(values, [25, 50, 75])))
    assert found.median == statistics.median(values)

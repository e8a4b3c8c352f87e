"""What a network costs before and after a cut: numbers learned, work, size on disk, and time on this device."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .errors import OutputError
from .lrp.capture import evaluating
from .records import CostsRecord, LatencyRecord, Spread, WorkRecord
from .slim import SlimRecord

BATCHES = (1, 32)
_SHORTEST = 0.01  # seconds; a shorter turn says more about the clock than about the network
_FEWEST, _USUAL, _MOST = 3, 15, 60
_STEADY = 0.03


def measure(
    before: nn.Module,
    after: nn.Module,
    record: SlimRecord,
    input_size: Sequence[int],
    *,
    batches: Sequence[int] = BATCHES,
    dtype: torch.dtype | None = None,
    seconds: float = 4.0,
    folder: Path | None = None,
) -> CostsRecord:
    """Compare what two networks cost.

    Parameters
    ----------
    before, after
        On one device; `after` is :func:`pxp_fast.slim`'s of `before`, and `record` what slimming recorded.
    input_size
        ``(C, H, W)``.
    batches
        Numbers of images whose latency is measured.
    dtype
        Autocast to it (bfloat16, float16); None: as the networks are.
    seconds
        About how long measuring may take for each of `batches`.
    folder
        Where the files whose size is measured are written for a moment; None: where temporary files go.
    """
    parameter = next(before.parameters())
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in batches:
        images = torch.randn(batch, *input_size, generator=generator).to(parameter)
        try:
            timed = latency(before, after, images, dtype=dtype, seconds=seconds)
            runs = max(1, min(5, int(seconds / 2 / (timed.before.median + timed.after.median))))
            work = by_work(before, after, images, dtype=dtype, runs=runs)
        except torch.OutOfMemoryError:
            continue
        found.append(timed.model_copy(update={"work": work}))
    return CostsRecord(
        parameters=(record.before.parameters, record.after.parameters),
        flops=(record.before.flops, record.after.flops),
        bytes=(saved_bytes(before, folder), saved_bytes(after, folder)),
        latency=tuple(found),
        device=torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else str(parameter.device),
        threads=torch.get_num_threads(),
        precision=str(dtype or parameter.dtype).removeprefix("torch."),
    )


def saved_bytes(model: nn.Module, folder: Path | None = None) -> int:
    """The size of the model's parameters and buffers as a safetensors file, which is written and removed again.

    Raises OutputError when there is no space for it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / "model.safetensors"
            save_model(model, str(path))
            return path.stat().st_size
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the network into {folder or tempfile.gettempdir()} to see its size: {error}; free space"
        ) from error


def latency(
    before: nn.Module,
    after: nn.Module,
    images: Tensor,
    *,
    dtype: torch.dtype | None = None,
    seconds: float = 4.0,
) -> LatencyRecord:
    """Time two networks on the same images, in turns, so that whatever else the machine does befalls both.

    Each network runs twice unmeasured, or once where that takes a second. A turn repeats a batch until it takes 10 ms
    at least; which network begins a round alternates. There are 15 rounds, or up to 60 until half of the rounds'
    speed-ups lie within 3 % of each other; but as few, three at least, as fit into `seconds`.
    """
    models = (before, after)
    turns: tuple[list[float], list[float]] = ([], [])
    with _judging(models, images.device, dtype):
        repeats = []
        for model in models:
            once = _timed(lambda model=model: model(images), 1, images.device)
            if once < 1:
                once = _timed(lambda model=model: model(images), 1, images.device)
            repeats.append(min(1000, max(1, math.ceil(_SHORTEST / max(once, 1e-6)))))
        start = time.perf_counter()
        while not _enough(turns, time.perf_counter() - start > seconds):
            order = (0, 1) if len(turns[0]) % 2 == 0 else (1, 0)
            for one in order:
                turns[one].append(_timed(lambda one=one: models[one](images), repeats[one], images.device))
    ratios = _ratios(turns)
    return LatencyRecord(
        batch=len(images),
        rounds=len(ratios),
        before=spread(turns[0]),
        after=spread(turns[1]),
        speed_up=spread(ratios),
        faster=sum(ratio > 1 for ratio in ratios),
    )


def _ratios(turns: tuple[list[float], list[float]]) -> list[float]:
    return [before / after for before, after in zip(*turns, strict=True)]


def _enough(turns: tuple[list[float], list[float]], late: bool) -> bool:
    rounds = len(turns[0])
    if rounds < _FEWEST or (rounds < _USUAL and not late):
        return False
    if late or rounds >= _MOST:
        return True
    found = spread(_ratios(turns))
    return found.high - found.low <= _STEADY * found.median


@contextlib.contextmanager
def _judging(models: Iterable[nn.Module], device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Let the models run in a block as they do when they are judged."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


class _Stopwatch(TorchDispatchMode):
    """Adds up how long operators take, apart for those whose work FLOPs count."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds = {True: 0.0, False: 0.0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        counted = packet in flop_registry or "scaled_dot_product" in packet.__name__
        found = []
        self.seconds[counted] += _timed(lambda: found.append(function(*args, **(kwargs or {}))), 1, self.device)
        return found[0]


def by_work(
    before: nn.Module, after: nn.Module, images: Tensor, *, dtype: torch.dtype | None = None, runs: int = 5
) -> WorkRecord:
    """How long the operators take whose work FLOPs count, and all others, each operator timed alone: medians."""
    found: tuple[list[_Stopwatch], list[_Stopwatch]] = ([], [])
    with _judging((before, after), images.device, dtype):
        for _ in range(runs):
            for model, watches in zip((before, after), found, strict=True):
                with _Stopwatch(images.device) as watch:
                    model(images)
                watches.append(watch)
    counted, other = (
        tuple(statistics.median(watch.seconds[which] for watch in watches) for watches in found)
        for which in (True, False)
    )
    return WorkRecord(counted=counted, other=other)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high)


def _timed(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds that one of `repeats` runs takes; on a GPU by its own clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record(torch.cuda.current_stream(device))
    for _ in range(repeats):
        run()
    end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000 / repeats

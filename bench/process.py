"""A contender in a process of its own, timed and weighed there.

zennit's and LXT's hooks and patches reach all of the process they are in, and so do the allocator's habits; a process
each also makes memory comparable.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import traceback
from dataclasses import asdict, dataclass

from .memory import Gauge
from .timing import Call, measure


@dataclass(frozen=True)
class Job:
    """What a process does.

    Attributes
    ----------
    batch, size
        Images per call, pixels per side.
    inputs
        How many different batches take turns, so that no call finds its input in a cache.
    retain
        Let the C allocator keep freed memory, as pxp_fast's command does; alike for all contenders.
    """

    contender: str
    network: str
    batch: int = 8
    size: int = 224
    device: str = "cpu"
    threads: int = 2
    inputs: int = 4
    retain: bool = False


class ContenderFailed(RuntimeError):
    """A contender that cannot do its job; the message ends with its own."""


def serve(pipe, job: Job) -> None:
    """Get ready, say so, then run and time as many calls as are asked for until there are no more."""
    try:
        _serve(pipe, job)
    except Exception:
        pipe.send(ContenderFailed(traceback.format_exc()))


def _serve(pipe, job: Job) -> None:
    import torch

    from pxp_fast import memory

    from .networks import batches, network
    from .peers import build

    torch.set_num_threads(job.threads)
    if job.retain:
        memory.retain()
    model = network(job.network, job.size).to(job.device)
    inputs = [(i.to(job.device), y.to(job.device)) for i, y in batches(job.inputs, job.batch, job.size)]
    gauge = Gauge(job.device)
    peer = build(job.contender, model, inputs[0][0])
    turn = itertools.cycle([(peer.prepare(images), labels) for images, labels in inputs])
    del inputs
    gauge.built()
    pipe.send("ready")

    def run(calls: int) -> None:
        for _ in range(calls):
            peer.run(*next(turn))

    synchronize = torch.cuda.synchronize if job.device == "cuda" else lambda: None
    while (calls := pipe.recv()) != "end":
        pipe.send(measure(lambda count=calls: run(count), synchronize))
    pipe.send(asdict(gauge.read()))


class Process:
    """Runs `job` on request, once `ready` has returned. Not busy between requests."""

    def __init__(self, job: Job) -> None:
        # An idle contender must sleep, not spin, while another one's time is taken.
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(job.threads)}
        context = multiprocessing.get_context("spawn")
        self.job = job
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the contender is built."""
        self._expect()

    def _ask(self, request):
        with contextlib.suppress(OSError):  # it is gone; `_expect` says so
            self._pipe.send(request)
        return self._expect()

    def _expect(self):
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            answer = ContenderFailed(f"ended with exit status {self._process.exitcode}")
        if isinstance(answer, ContenderFailed):
            raise answer
        return answer

    def run(self, calls: int = 1) -> Call:
        """Time of `calls` calls in a row, each with the next batch."""
        return self._ask(calls)

    def close(self) -> dict[str, float | None]:
        """End the process; its memory, see :class:`bench.memory.Memory`."""
        found = self._ask("end")
        self._process.join()
        return found

"""Contenders on one network, taking turns, and how their times compare."""

from __future__ import annotations

import sys

from .peers import YARDSTICK, yardstick_like
from .process import ContenderFailed, Job, Process
from .timing import Call, record, summarise

WARM_UP = 10  # calls before the first one that counts; the first allocates and, on CUDA, chooses algorithms
# The fields of a result that compare it, with the yardstick as everybody writes it and with the yardstick that has the
# contender's own dtype and layout.
RATIO = "ratio_to_float32_contiguous_gradient"
RATIO_ALIKE = "ratio_to_gradient_of_same_dtype_and_layout"


def compare(jobs: list[Job], calls: int, repeats: int) -> dict[str, dict]:
    """Contender -> times per image, ratios, memory; of one that fails, its message."""
    found: dict[str, dict] = {job.contender: {} for job in jobs}
    times: dict[str, list[Call]] = {name: [] for name in found}
    running: list[Process] = []

    def attempt(action, name: str):
        try:
            return action()
        except ContenderFailed as failure:
            message = str(failure).strip()
            print(f"  {name} failed:\n{message}", file=sys.stderr, flush=True)
            found[name] = {"failed": message.splitlines()[-1]}
            running[:] = [process for process in running if process.job.contender != name]

    running.extend(Process(job) for job in jobs)  # all at once: getting ready is not timed
    for process in list(running):
        attempt(process.ready, process.job.contender)
    for process in list(running):
        attempt(lambda process=process: process.run(min(calls, WARM_UP)), process.job.contender)
    for repeat in range(repeats):
        first = repeat % max(1, len(running))
        for process in running[first:] + running[:first]:  # a copy, since `attempt` may shorten the list
            name = process.job.contender
            call = attempt(lambda process=process: process.run(calls), name)
            if call is not None:
                times[name].append(call)
    for process in list(running):
        name = process.job.contender
        memory = attempt(process.close, name)
        if memory is not None:
            images = process.job.batch * calls
            found[name] = record(summarise(times[name], images)) | memory
    add_ratios(found, jobs[0].network, jobs[0].device)
    return found


def add_ratios(found: dict[str, dict], network: str, device: str) -> None:
    """Compare every contender's time, in place, with those of the yardsticks that ran."""
    clock = clock_of(device)
    for name, entry in found.items():
        if "failed" in entry:
            continue
        entry["images_per_second"] = round(1e3 / entry["wall_ms"], 2)
        like = yardstick_like(name, network)
        for field, yardstick in ((RATIO, YARDSTICK), (RATIO_ALIKE, like)):
            if clock in found.get(yardstick, {}):
                entry[field] = round(entry[clock] / found[yardstick][clock], 3)
        entry["gradient_of_same_dtype_and_layout"] = like


def clock_of(device: str) -> str:
    """The field of a result that ratios compare."""
    return "wall_ms" if device == "cuda" else "cpu_ms"

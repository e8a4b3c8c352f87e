"""Run by sanitizers.py under the sanitizers: each of these faults must end the process that commits it.

Not a test module by name: without sanitizers the faults are undefined behaviour.
"""

import ctypes
import os

import pytest
import torch
from simulation import call

THREADS = 256


@pytest.mark.parametrize(
    ("name", "elements", "report"),
    [
        ("whole warps", THREADS, ""),
        ("read behind", THREADS, "heap-buffer-overflow"),
        ("write before", THREADS, "heap-buffer-overflow"),
        ("index of 32 bits", THREADS, "signed integer overflow"),
        ("load between packs", THREADS + 4, "misaligned address"),
        ("outside of shared", THREADS, "out of bounds"),
    ],
)
def test_fault_ends_the_process(simulated, tmp_path, name, elements, report):
    library, log = simulated("faults"), tmp_path / "log"
    child = os.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        data = torch.ones(elements)
        call(library, "fault", "random", ctypes.c_char_p(name.encode()), data, data.numel())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status != 0) == bool(report) and report in log.read_text()

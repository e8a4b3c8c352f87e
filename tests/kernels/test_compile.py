"""The CUDA compiler's word on the kernels: no warning, no register spilled, on each generation of GPUs."""

import re

import pytest
from compilation import SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_compile_clean(source, architecture, cubin_of):
    _, log = cubin_of(source, architecture)
    kernels = re.findall(r"Compiling entry function '(\S+)'", log)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert kernels and len(spills) >= len(kernels)
    assert all(pair == ("0", "0") for pair in spills), log

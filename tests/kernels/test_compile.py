"""The CUDA compiler's word on the kernels: no warning, no register spilled, on each generation of GPUs."""

import re


def test_kernels_compile_clean(kernels_cubin):
    _, log = kernels_cubin
    kernels = re.findall(r"Compiling entry function '(\S+)'", log)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(kernels) > 50 and len(spills) >= len(kernels)
    assert all(pair == ("0", "0") for pair in spills), log

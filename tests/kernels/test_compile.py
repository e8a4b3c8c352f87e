"""The CUDA compiler's word on the kernels: no warning, no register spilled, on each generation of GPUs."""

import re
import shutil
import subprocess

import pytest
from simulation import CSRC, HERE

NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH: install a CUDA toolkit to compile the kernels")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("source", "fewest"), [("instantiate.cu", 50), ("instantiate_products.cu", 21)])
def test_kernels_compile_clean(source, fewest, architecture, tmp_path):
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    command = [NVCC, "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas=-v,-warn-spills"]
    command += ["--expt-relaxed-constexpr", "-Werror", "all-warnings", "-I", str(CSRC)]
    done = subprocess.run(
        [*command, str(HERE / source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\S+)'", done.stderr)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(kernels) >= fewest and len(spills) >= len(kernels)
    assert all(pair == ("0", "0") for pair in spills), done.stderr

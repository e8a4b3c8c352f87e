"""How setup.py finds a CUDA toolkit, and what it says when it finds none."""

import os
import runpy
from pathlib import Path

import pytest
import setuptools
import torch

SETUP = Path(__file__).resolve().parent.parent / "setup.py"

if not SETUP.exists():
    pytest.skip("no setup.py beside the tests", allow_module_level=True)


@pytest.fixture
def setup(monkeypatch):
    """What setup.py defines, without a build; no toolkit of this machine is seen."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "PXP_CUDA", "MAX_JOBS"):
        monkeypatch.delenv(variable, raising=False)
    return runpy.run_path(str(SETUP))


def toolkit(root, leave_out=""):
    """A CUDA toolkit as far as setup.py looks at one, and a wrapper for its nvcc in another place."""
    for file in ("include/cuda_runtime.h", "lib64/libcudart_static.a"):
        if not file.endswith(leave_out or "nothing"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
    wrapper = root.parent / "somewhere" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$1" = --dryrun ]; then echo "#$ TOP={root}/bin/.." >&2; fi\n'
        'if [ "$1" = --list-gpu-arch ]; then printf "compute_75\\ncompute_80\\ncompute_90\\n"; fi\n'
    )
    wrapper.chmod(0o755)
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "nvcc").write_text(wrapper.read_text())
    (root / "bin" / "nvcc").chmod(0o755)
    return wrapper


@pytest.mark.parametrize("variable", ["PATH", "CUDACXX"])
def test_the_toolkit_behind_a_wrapper(setup, monkeypatch, tmp_path, variable):
    wrapper = toolkit(tmp_path / "cuda-99")
    monkeypatch.setenv(variable, f"{wrapper.parent}{os.pathsep}/bin" if variable == "PATH" else str(wrapper))
    assert setup["find_toolkit"]() == tmp_path / "cuda-99"


@pytest.mark.parametrize("missing", ["cuda_runtime.h", "libcudart_static.a"])
def test_half_a_toolkit_is_named(setup, monkeypatch, tmp_path, missing):
    monkeypatch.setenv("CUDACXX", str(toolkit(tmp_path / "cuda-99", leave_out=missing)))
    with pytest.raises(setup["MissingCuda"], match=missing):
        setup["find_toolkit"]()


def test_no_nvcc(setup, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(setup["MissingCuda"], match="no nvcc"):
        setup["find_toolkit"]()


def test_architectures(setup, monkeypatch, tmp_path):
    nvcc = toolkit(tmp_path / "cuda-99")
    assert setup["cmake_architectures"](nvcc) == "80-real;90-real;90-virtual"  # trimmed to what nvcc knows
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.6+PTX")
    assert setup["cmake_architectures"](nvcc) == "80-real;86-real;86-virtual"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="Hopper"):
        setup["cmake_architectures"](nvcc)


@pytest.mark.parametrize("asked", ["7.5;8.0", "75", "8.0 7.0+PTX"])
def test_an_architecture_without_the_instructions_is_refused(setup, monkeypatch, asked):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=r"holds '7\.?[05].*need 8.0 at least"):
        setup["cmake_architectures"](Path("no nvcc"))


@pytest.mark.parametrize("asked", ["Hopper", "9.0+ptx", "9.0-real", ";"])
def test_a_malformed_list_of_architectures_is_never_passed_over(setup, monkeypatch, tmp_path, asked):
    monkeypatch.setenv("CUDACXX", str(toolkit(tmp_path / "cuda-99")))
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST holds"):
        setup["cuda_options"]()


def test_cuda_without_anything_compiled_is_a_contradiction(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    monkeypatch.setenv("PXP_NATIVE", "0")
    monkeypatch.setenv("PXP_CUDA", "1")
    with pytest.raises(SystemExit, match="PXP_CUDA=1 and PXP_NATIVE=0"):
        runpy.run_path(str(SETUP))
    monkeypatch.setenv("PXP_CUDA", "auto")
    runpy.run_path(str(SETUP))


def test_choices(setup, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDACXX", str(toolkit(tmp_path / "cuda-99")))
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    assert "-DPXP_CUDA=ON" in setup["cuda_options"]()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert setup["cuda_options"]() == ["-DPXP_CUDA=OFF"]
    assert "built without CUDA" in capsys.readouterr().out
    monkeypatch.setenv("PXP_CUDA", "1")
    with pytest.raises(SystemExit, match="built without CUDA"):
        setup["cuda_options"]()
    monkeypatch.setenv("PXP_CUDA", "0")
    assert setup["cuda_options"]() == ["-DPXP_CUDA=OFF"]
    monkeypatch.setenv("PXP_CUDA", "perhaps")
    with pytest.raises(SystemExit, match="auto, 0 or 1"):
        setup["cuda_options"]()


def test_jobs(setup, monkeypatch):
    assert 1 <= setup["jobs"]() <= os.cpu_count()
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup["jobs"]() == 3

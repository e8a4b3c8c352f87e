"""`pxp_fast.info` tells what is there, and says what to do about what is not."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pxp_fast import info
from pxp_fast.ops import _library

ONLY = {"CUDA": {"linear_epsilon", "convolution_epsilon"}, "CPU": {"share_"}}
OPERATORS = {
    "epsilon",
    "epsilon_",
    "epsilon_over_",
    "unit_sums_",
    "layer_norm",
    "layer_norm_",
    "accumulate_",
    "add_relu",
    "mask_",
    "max_pool",
    "max_pool_epsilon",
    "max_pool_epsilon_",
    "select",
    *ONLY["CUDA"],
    *ONLY["CPU"],
}


def test_facts():
    found = info.collect()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__ and found["torch_cuda"] == torch.version.cuda
    assert set(found["kernels"]) == OPERATORS
    for key, state in _library.native.items():
        for name, there in found["kernels"].items():
            elsewhere = any(name in names for other, names in ONLY.items() if other != key)
            assert there[key] == (state == "loaded" and not elsewhere)
    text = info.render(found)
    assert all(name in text for name in OPERATORS) and torch.__version__ in text
    for item in found["missing"]:
        assert item["what"] in text and item["remedy"] in text


def test_without_compiled_libraries():
    script = "import json; from pxp_fast import info; f = info.collect(); print(json.dumps([f, info.render(f)]))"
    environment = {**os.environ, "PXP_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    found, text = json.loads(done.stdout)
    assert not any(there[key] for there in found["kernels"].values() for key in ("CPU", "CUDA"))
    assert any("CPU kernels" in item["what"] and "PXP_NATIVE" in item["remedy"] for item in found["missing"])
    assert "the same results, slower" in text


def test_a_library_that_does_not_load_is_named(monkeypatch, tmp_path, recwarn):
    """A broken or foreign file leaves the package working, and says so once."""
    monkeypatch.delenv("PXP_NATIVE", raising=False)
    monkeypatch.setattr(_library, "PACKAGE", tmp_path)
    monkeypatch.setattr(_library, "native", {})
    (tmp_path / _library.LIBRARIES["CPU"]).write_bytes(b"not a library")
    _library.load()
    assert "does not load" in _library.native["CPU"]
    assert "is not installed" in _library.native["CUDA"]
    assert len(recwarn) == 1 and "Reinstall" in str(recwarn[0].message)


DEFAULT = ["80-real", "86-real", "89-real", "90-real", "100-real", "120-real", "120-virtual"]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (DEFAULT, (7, 5), False),
        ([], (7, 5), False),
        (DEFAULT, (8, 0), True),
        (DEFAULT, (8, 9), True),
        (DEFAULT, (10, 3), True),
        (DEFAULT, (11, 0), False),  # behind the machine code of 10.0, before the PTX of 12.0
        (DEFAULT, (13, 0), True),
        ([], (9, 0), True),
        (["90-real"], (8, 0), False),
        (["90-real"], (10, 0), False),
        (["86-real"], (8, 0), False),
        (["90"], (10, 0), True),
        (["120a-real"], (12, 0), True),
        (["120a-real"], (12, 1), False),
        (["100a-virtual"], (10, 3), False),
        (["100f-real"], (10, 3), True),
        (["100f-real"], (12, 0), False),
        (["native"], (9, 0), True),
    ],
)
def test_the_cuda_library_waits_for_gpus_that_it_has_code_for(monkeypatch, tmp_path, architectures, capability, runs):
    """Not asked at import, which would initialize CUDA; the file is no library, so that trying to load it shows."""
    waiting = []
    monkeypatch.delenv("PXP_NATIVE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index == 0 else capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "_lazy_call", waiting.append)
    monkeypatch.setattr(_library, "build", lambda: {"cuda_architectures": ["90-real", *architectures]})
    if not architectures:
        monkeypatch.setattr(_library, "build", lambda: None)
    monkeypatch.setattr(_library, "PACKAGE", tmp_path)
    monkeypatch.setattr(_library, "native", {})
    (tmp_path / _library.LIBRARIES["CUDA"]).write_bytes(b"not a library")
    _library.load()
    assert "waits" in _library.native["CUDA"]
    (load,) = waiting
    if runs:
        with pytest.warns(RuntimeWarning, match="does not load"):
            load()
    else:
        load()
        reason = _library.native["CUDA"]
        assert f"no code for cuda:1, GPU 1, of compute capability {capability[0]}.{capability[1]}" in reason


def test_a_missing_extra_is_named(monkeypatch):
    version = info.version
    monkeypatch.setattr(info, "version", lambda package: None if package == "timm" else version(package))
    missing = {item["what"]: item for item in info.collect()["missing"]}
    assert missing["timm"]["remedy"] == "pip install 'pxp_fast[models]'"

"""Builds the package once and runs the tests of the operators with that one build on other versions of PyTorch.

    python tests/stable_abi.py                      # on the PyTorch it is built with, and on the two after it
    python tests/stable_abi.py 2.14.0 2.13.0+cpu    # on these

Not part of the test suite: every version of PyTorch is downloaded, gigabytes and minutes each. The wheel is built as
setup.py would build it for a user, with the CUDA library where a CUDA toolkit is found (TORCH_CUDA_ARCH_LIST=9.0 makes
that quicker), and installed in a new virtual environment per version, outside of this checkout. Each must load every
library that its PyTorch can load, GPU or not, and pass tests/ops. `here` is the PyTorch that runs this script, borrowed
instead of downloaded. Exit status: how many versions failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ["here", "2.12.0", "2.13.0"]
# Beside the package's own dependencies: what tests/ops imports.
TOOLS = ["pytest", "pytest-timeout"]
LIBRARIES = """
import torch, pxp_fast
from pxp_fast.ops import _library
if torch.cuda.is_available():
    torch.cuda.init()  # which the CUDA library waits for
print(f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}), {pxp_fast.__path__[0]}: {_library.native}")
expected = {"CPU", "CUDA"} if torch.version.cuda and WITH_CUDA else {"CPU"}
assert {key for key, state in _library.native.items() if state == "loaded"} == expected, "a library is not loaded"
for operator in _library.operators.values():
    for key in expected:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key), f"{operator} has no {key} kernel"
"""


def run(*command: str | Path, **options) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(c) for c in command], check=True, **options)


def build_wheel(folder: Path) -> Path:
    """The wheel of a copy of this checkout, so that nothing built here before can get into it."""
    source = folder / "source"
    ignore = shutil.ignore_patterns("build", "*.so", "*.egg-info", ".git", ".venv", "__pycache__", "out")
    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, version: str, wheel: Path) -> Path:
    """A new virtual environment with that PyTorch and the wheel; its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if version == "here":
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        inside = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        (Path(inside) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", wheel)
    else:
        run(python, "-m", "pip", "install", "-q", f"torch==={version}", wheel, *TOOLS)
    return python


def check(python: Path, with_cuda: bool, folder: Path) -> None:
    """From a folder that holds the tests but no pxp_fast, so that the installed one is what is imported."""
    (folder / "tests").mkdir(parents=True)
    for name in ("conftest.py", "sparse_memory.py", "ops"):
        copy = shutil.copytree if (ROOT / "tests" / name).is_dir() else shutil.copy2
        copy(ROOT / "tests" / name, folder / "tests" / name)
    run(python, "-c", LIBRARIES.replace("WITH_CUDA", str(with_cuda)), cwd=folder)
    run(python, "-m", "pxp_fast", "info", cwd=folder)
    run(python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/ops", cwd=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="PyTorch versions as on PyPI, or `here`")
    parser.add_argument("--folder", type=Path, help="work here and leave everything; by default a temporary folder")
    arguments = parser.parse_args()
    for variable in ("PXP_NATIVE", "PYTHONPATH"):
        os.environ.pop(variable, None)
    if arguments.folder:
        arguments.folder.mkdir(parents=True)
    failed = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        wheel = build_wheel(folder)
        with_cuda = any(name.endswith("libpxp_fast_cuda.so") for name in zipfile.ZipFile(wheel).namelist())
        for version in arguments.versions:
            try:
                python = environment(folder / f"torch-{version}", version, wheel)
                check(python, with_cuda, folder / f"run-{version}")
            except subprocess.CalledProcessError as error:
                failed[version] = error
            if not arguments.folder:
                shutil.rmtree(folder / f"torch-{version}")
    for version in arguments.versions:
        print(f"PyTorch {version}: {'FAILED' if version in failed else 'passed'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

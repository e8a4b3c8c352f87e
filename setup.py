"""Builds the compiled libraries by CMake while pip, or ``python setup.py build_ext --inplace``, builds the package.

Environment
-----------
PXP_CUDA              ``auto`` (default) builds the CUDA library where a CUDA toolkit and a CUDA build of PyTorch are
                      found; ``1`` insists on it and names what is missing; ``0`` leaves it out.
TORCH_CUDA_ARCH_LIST  the GPU architectures, as PyTorch spells them ("8.0;9.0+PTX").
CUDACXX, CUDA_HOME    where nvcc is, if not on the PATH.
MAX_JOBS              how many compilers may run at once; by default as many as cores and memory carry.
PXP_NATIVE=0          builds nothing: a pure Python package, with the same results, slower.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
BYTES_PER_JOB = 1.5e9


class MissingCuda(Exception):
    """What keeps the CUDA library from being built."""


def output_of(*command: str) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def find_toolkit() -> Path:
    """The toolkit's root. A wrapper named nvcc may lie anywhere, so nvcc itself is asked where its toolkit is."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("CUDACXX"), home and os.path.join(home, "bin", "nvcc"), shutil.which("nvcc")]
    candidates.append("/usr/local/cuda/bin/nvcc")
    nvcc = next((c for c in candidates if c and os.access(c, os.X_OK)), None)
    if nvcc is None:
        raise MissingCuda("no nvcc in $CUDACXX, $CUDA_HOME/bin, the PATH or /usr/local/cuda: install the CUDA toolkit")
    top = re.search(r"^#\$ TOP=(.*)$", output_of(nvcc, "--dryrun", "-x", "cu", os.devnull), re.MULTILINE)
    if top is None:
        raise MissingCuda(f"{nvcc} does not say where its toolkit is (--dryrun prints no TOP=)")
    root = Path(top[1].strip().strip('"')).resolve()
    headers = [root / "include", *root.glob("targets/*/include")]
    if not any((d / "cuda_runtime.h").exists() for d in headers):
        raise MissingCuda(f"the toolkit of {nvcc} in {root} has no cuda_runtime.h: install its development headers")
    libraries = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
    if not any((d / "libcudart_static.a").exists() for d in libraries):
        raise MissingCuda(f"the toolkit of {nvcc} in {root} has no libcudart_static.a: install its runtime library")
    return root


def cmake_architectures(nvcc: Path) -> str:
    """TORCH_CUDA_ARCH_LIST, or what this toolkit knows of our own list, in CMake's spelling."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    wanted = [a for a in re.split(r"[;,\s]+", asked or ARCHITECTURES) if a]
    wrong = [a for a in wanted if not re.fullmatch(r"\d{1,2}\.?\d[af]?(\+PTX)?", a)]
    if wrong or not wanted:  # a slip of the pen, not something missing: never passed over
        sys.exit(f"TORCH_CUDA_ARCH_LIST holds {(wrong or [asked])[0]!r}; write numbers such as 8.0;9.0+PTX")
    number = {a: int(re.sub(r"\D", "", a)) for a in wanted}
    too_old = [a for a in wanted if number[a] < 80]
    if too_old:
        sys.exit(
            f"TORCH_CUDA_ARCH_LIST holds {too_old[0]!r}, but the CUDA kernels need 8.0 at least (they copy "
            "asynchronously, and multiply on tensor cores): leave it out, or set PXP_CUDA=0"
        )
    if not asked:
        known = set(re.findall(r"compute_(\d+)", output_of(str(nvcc), "--list-gpu-arch")))
        trimmed = [a for a in wanted if a.partition("+")[0].replace(".", "") in known]
        if trimmed and not trimmed[-1].endswith("+PTX"):
            trimmed[-1] += "+PTX"
        wanted = trimmed
    result = []
    for architecture in wanted:
        number = architecture.partition("+")[0].replace(".", "")
        result.append(f"{number}-real")
        if architecture.endswith("+PTX"):
            result.append(f"{number}-virtual")
    return ";".join(result)


def cuda_options() -> list[str]:
    """CMake's options for the CUDA library."""
    choice = os.environ.get("PXP_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"PXP_CUDA is {choice!r}; set it to auto, 0 or 1")
    if choice == "0":
        return ["-DPXP_CUDA=OFF"]
    import torch

    try:
        if torch.version.cuda is None:
            raise MissingCuda(f"PyTorch {torch.__version__} is built without CUDA: install a CUDA build of it")
        root = find_toolkit()
        nvcc = root / "bin" / "nvcc"
        options = ["-DPXP_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        return [*options, f"-DCMAKE_CUDA_ARCHITECTURES={cmake_architectures(nvcc)}"]
    except MissingCuda as missing:
        if choice == "1":
            sys.exit(f"PXP_CUDA=1, but the CUDA library cannot be built: {missing}")
        print(f"pxp_fast: building without the CUDA library: {missing}", flush=True)
        return ["-DPXP_CUDA=OFF"]


def available_memory() -> float:
    """Bytes that may be used now, by the machine's account and by that of the container around us."""
    limits = [float("inf")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        limits += [float(kb) * 1024 for kb in re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        limits.append(float(text))
    return min(limits)


def jobs() -> int:
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(cores, available_memory() // BYTES_PER_JOB)))


class CMakeBuild(build_ext):
    """Runs CMake once; all libraries land beside each other in the package."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # One folder per interpreter: CMake's cache remembers which one it was configured for.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        if (build / "CMakeCache.txt").exists():
            # With build isolation every build has another interpreter path; a stale cache would look for the last one.
            (build / "CMakeCache.txt").unlink()
        build.mkdir(parents=True, exist_ok=True)
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run([*configure, *cuda_options()], check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(jobs())], check=True)
        for stale in package.glob("libpxp_fast_*.so"):  # from a build with other options
            stale.unlink()
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(package), "--strip"], check=True)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: setuptools copies the extension module, but knows nothing of the libraries."""
        super().copy_extensions_to_source()
        built = {path.name: path for path in (Path(self.build_lib).resolve() / "pxp_fast").glob("libpxp_fast_*.so")}
        for stale in (ROOT / "pxp_fast").glob("libpxp_fast_*.so"):
            if stale.name not in built:
                stale.unlink()
        for name, library in built.items():
            # By renaming: a running program keeps the old file, which overwriting would pull from under it.
            shutil.copy2(library, ROOT / "pxp_fast" / f".{name}.new")
            os.replace(ROOT / "pxp_fast" / f".{name}.new", ROOT / "pxp_fast" / name)


native = os.environ.get("PXP_NATIVE", "1") != "0"
if not native and os.environ.get("PXP_CUDA") == "1":
    sys.exit("PXP_CUDA=1 and PXP_NATIVE=0 contradict each other: unset PXP_NATIVE to build the CUDA library")
setup(
    ext_modules=[Extension("pxp_fast._build", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)

"""What is installed here, which compiled kernels stand behind the operators, and what is missing."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from .environment import version
from .ops import _library

# Packages that parts of pxp_fast need, the extra that brings them, and what does not work without them.
_OPTIONAL = {
    "torchvision": ("models", "models from torchvision (torchvision:NAME) cannot be loaded"),
    "timm": ("models", "models from timm (timm:NAME) cannot be loaded"),
    "scipy": ("studies", "no stability of scores (pxp-fast stability)"),
    "matplotlib": ("report", "no plots in reports"),
    "jinja2": ("report", "no report pages"),
}
_KEYS = ("CPU", "CUDA")


def _devices() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices


def _cuda_remedy(reason: str) -> str:
    if "PXP_NATIVE" in reason:
        return "unset PXP_NATIVE"
    if "8.0 at least" in reason:
        return "hide older GPUs by CUDA_VISIBLE_DEVICES"
    if "no code for" in reason:
        return "build with this compute capability in TORCH_CUDA_ARCH_LIST, or hide the GPU by CUDA_VISIBLE_DEVICES"
    return "install a CUDA toolkit, then PXP_CUDA=1 pip install . (which names what is still missing)"


def _missing(found: dict[str, Any]) -> list[dict[str, str]]:
    """What is not there, what that means, and how to get it."""
    missing = []
    libraries = found["libraries"]
    if libraries["CPU"] != "loaded":
        missing.append(
            {
                "what": f"compiled CPU kernels ({libraries['CPU']})",
                "means": "the same results, slower: the operators run as plain PyTorch",
                "remedy": "unset PXP_NATIVE" if "PXP_NATIVE" in libraries["CPU"] else "install g++, then pip install .",
            }
        )
    if found["torch_cuda"] is None:
        missing.append(
            {
                "what": "CUDA in PyTorch (a CPU build)",
                "means": "everything runs on the CPU",
                "remedy": "install a CUDA build of PyTorch, then pxp_fast again",
            }
        )
    else:
        if not found["devices"]:
            missing.append(
                {
                    "what": "a CUDA device",
                    "means": "everything runs on the CPU",
                    "remedy": "run where `nvidia-smi` lists a GPU, with a driver that fits PyTorch's CUDA version",
                }
            )
        if libraries["CUDA"] != "loaded":
            missing.append(
                {
                    "what": f"compiled CUDA kernels ({libraries['CUDA']})",
                    "means": "on a GPU the same results, slower: the operators run as plain PyTorch",
                    "remedy": _cuda_remedy(libraries["CUDA"]),
                }
            )
    missing += [
        {"what": package, "means": means, "remedy": f"pip install 'pxp_fast[{extra}]'"}
        for package, (extra, means) in _OPTIONAL.items()
        if found["packages"][package] is None
    ]
    return missing


def collect() -> dict[str, Any]:
    """Look around.

    Returns
    -------
    dict
        JSON-able: ``version``, ``python``, ``platform``, ``torch``, ``torch_cuda`` (the CUDA version of PyTorch,
        None for a CPU build), ``packages`` (version or None), ``cpu`` (threads, vector instructions PyTorch uses),
        ``devices`` (CUDA devices), ``libraries`` (for "CPU" and "CUDA" either "loaded" or why not), ``kernels``
        (for each operator, whether a compiled kernel is registered for "CPU" and "CUDA"), ``build`` (how the
        libraries were built, None without any), ``missing`` (each with ``what``, ``means`` and ``remedy``).
    """
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    found: dict[str, Any] = {
        "version": version("pxp_fast"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "packages": {name: version(name) for name in ("numpy", "safetensors", *_OPTIONAL)},
        "cpu": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "devices": _devices(),
        "libraries": dict(_library.native),
        "kernels": {
            name: {key: registered(f"{_library.NAMESPACE}::{name}", key) for key in _KEYS}
            for name in _library.operators
        },
        "build": _library.build(),
    }
    found["missing"] = _missing(found)
    return found


def render(found: dict[str, Any]) -> str:
    """Write what :func:`collect` found as plain text, one fact a line."""
    lines = [
        f"pxp_fast {found['version'] or '(not installed)'}   Python {found['python']}   {found['platform']}",
        f"PyTorch {found['torch']}, " + (f"CUDA {found['torch_cuda']}" if found["torch_cuda"] else "without CUDA"),
        "packages: " + ", ".join(f"{name} {version or '-'}" for name, version in found["packages"].items()),
        "",
        "devices",
        f"  cpu      {found['cpu']['cores']} cores, {found['cpu']['threads']} threads, {found['cpu']['capability']}",
    ]
    lines += [
        f"  cuda:{d['index']}   {d['name']}, compute capability {d['capability']}, {d['memory_gib']} GiB"
        for d in found["devices"]
    ]
    width = max(len(name) for name in found["kernels"]) + 2
    lines += ["", f"{'kernels':{width + 2}s}" + "".join(f"{key:12s}" for key in _KEYS)]
    lines += [
        f"  {name:{width}s}" + "".join(f"{'compiled' if there[key] else 'PyTorch':12s}" for key in _KEYS)
        for name, there in found["kernels"].items()
    ]
    lines += ["", "libraries"] + [f"  {key:6s} {state}" for key, state in found["libraries"].items()]
    build = found["build"]
    if build:
        lines.append(f"  built by {build['compiler']} for CPU: {', '.join(build['instruction_sets'])}")
        if build["cuda_version"]:
            lines.append(f"  built by nvcc {build['cuda_version']} for GPU: {', '.join(build['cuda_architectures'])}")
    lines += ["", "missing" if found["missing"] else "nothing is missing"]
    for item in found["missing"]:
        lines += [f"  {item['what']}", f"      so: {item['means']}", f"      do: {item['remedy']}"]
    return "\n".join(line.rstrip() for line in lines)

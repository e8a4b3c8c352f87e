"""Runs the tests of the simulated kernels in a process under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from simulation import COMPILER, HERE

MODULES = ("test_simulated.py", "test_simulated_pools.py", "test_simulated_products.py", "sanitizer_faults.py")


def libraries() -> list[Path]:
    """What must be loaded before Python: the sanitizer, and the library whose exceptions it looks for when it starts.
    Empty where the compiler has no sanitizer."""
    if COMPILER is None:
        return []
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        command = [COMPILER, f"-print-file-name={name}"]
        paths.append(Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()))
    return paths if all(path.is_absolute() for path in paths) else []  # the bare name where one is not installed


def start(log: Path) -> subprocess.Popen:
    """Tensors end where their memory ends, and the first error ends the process."""
    environment = {
        **os.environ,
        "PXP_SANITIZERS": "address,undefined",
        "PXP_NATIVE": "0",
        "LD_PRELOAD": " ".join(map(str, libraries())),
        # Python and torch never free everything; threads of the simulator change stacks under the sanitizer's feet.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(HERE / module) for module in MODULES]
    with log.open("w") as output:
        return subprocess.Popen(command, env=environment, cwd=HERE.parent.parent, stdout=output, stderr=output)

"""All simulated kernels once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import COMPILER, HERE

MODULES = ("test_simulated.py", "test_simulated_products.py", "sanitizer_faults.py")


def sanitizer_libraries() -> list[Path]:
    """What must be loaded before Python: the sanitizer, and the library whose exceptions it looks for when it starts.
    Empty where the compiler has no sanitizer."""
    if COMPILER is None:
        return []
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        command = [COMPILER, f"-print-file-name={name}"]
        paths.append(Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()))
    return paths if all(path.is_absolute() for path in paths) else []  # the bare name where one is not installed


def test_simulated_kernels_under_sanitizers():
    """Tensors end where their memory ends, and the first error ends the process: in it, the tests of the simulated
    kernels pass, and faults committed on purpose are noticed."""
    libraries = sanitizer_libraries()
    if not libraries:
        pytest.skip("no g++ with libasan: install it (it comes with g++ on most systems)")
    environment = {
        **os.environ,
        "PXP_SANITIZERS": "address,undefined",
        "PXP_NATIVE": "0",
        "LD_PRELOAD": " ".join(map(str, libraries)),
        # Python and torch never free everything; threads of the simulator change stacks under the sanitizer's feet.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(HERE / module) for module in MODULES]
    done = subprocess.run(command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-10000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 60 and "skipped" not in done.stdout

"""Reads machine code: what a cubin's kernels consist of, which of their instructions are in loops."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?P<guard>@\S+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*)")
_LABEL = re.compile(r"^(\S+):$")
_TARGET = re.compile(r"`\(([^)]+)\)")
_TABLE = re.compile(r"BRANCH_TARGETS\s+([^\"]+)")


@dataclass
class Instruction:
    opcode: str
    operands: str
    guarded: bool
    loop: int | None = None
    """Which of the kernel's outermost loops it is in."""
    in_subroutine: bool = False
    """Of CUDA's own: the slow path of a division."""


@dataclass
class Kernel:
    name: str
    """As C++ spells it, without namespaces and arguments: ``epsilon_units<float, 4>``."""
    instructions: list[Instruction] = field(default_factory=list)
    registers: int = 0
    stack: int = 0
    spilled: int = 0

    def matching(self, pattern: str) -> list[Instruction]:
        """The instructions outside of subroutines whose ``OPCODE operands``, as in the listing, start like this."""
        compiled = re.compile(pattern)
        own = [i for i in self.instructions if not i.in_subroutine]
        return [i for i in own if compiled.match(f"{i.opcode} {i.operands}")]

    def count(self, pattern: str) -> int:
        return len(self.matching(pattern))


@cache
def disassembler() -> str | None:
    """nvdisasm from the PATH, from a CUDA toolkit, or from its PyPI package."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home) / "bin" for home in homes if home]
    packages = importlib.util.find_spec("nvidia")
    for location in packages.submodule_search_locations if packages else []:
        folders += sorted(Path(location).glob("*/bin"))
    return shutil.which("nvdisasm") or next(
        (str(folder / "nvdisasm") for folder in folders if os.access(folder / "nvdisasm", os.X_OK)), None
    )


def demangle(symbol: str) -> str:
    """``epsilon_units<float, 4>`` from the linker's spelling."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    pointer = library.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    if status.value:
        return symbol  # extern "C"
    try:
        full = ctypes.string_at(pointer).decode()
    finally:
        ctypes.CDLL(None).free(ctypes.c_void_p(pointer))
    full = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", full)
    return re.sub(r"\(.*", "", full.removeprefix("void "))


def read(cubin: Path, log: str) -> dict[str, Kernel]:
    """The kernels of a cubin by name, with what ``ptxas -v`` wrote in `log` about each."""
    done = subprocess.run([disassembler(), "-c", str(cubin)], check=True, capture_output=True, text=True)
    kernels = {}
    for section in re.split(r"^\s+\.section\s+", done.stdout, flags=re.MULTILINE)[1:]:
        symbol, _, listing = section.partition(",")
        if symbol.startswith(".text."):
            symbol = symbol.removeprefix(".text.")
            kernel = Kernel(demangle(symbol), _instructions(listing))
            kernel.registers, kernel.stack, kernel.spilled = _resources(symbol, log)
            kernels[kernel.name] = kernel
    return kernels


def _resources(symbol: str, log: str) -> tuple[int, int, int]:
    about = re.search(rf"Compiling entry function '{re.escape(symbol)}'.*?Used (\d+) registers", log, re.DOTALL)
    stack, stores, loads = re.search(r"(\d+) bytes stack frame, (\d+) .*? stores, (\d+)", about[0]).groups()
    return int(about[1]), int(stack), int(stores) + int(loads)


def _instructions(listing: str) -> list[Instruction]:
    instructions, labels, in_subroutine = [], {}, False
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
            in_subroutine = in_subroutine or label[1].startswith("$__internal")
        elif found := _INSTRUCTION.match(line):
            one = Instruction(found["opcode"], found["operands"].strip(), bool(found["guard"]))
            one.in_subroutine = in_subroutine
            instructions.append(one)
    _mark_loops(instructions, labels)
    return instructions


def _successors(at: int, instructions: list[Instruction], labels: dict[str, int]) -> list[int]:
    """Where control goes from an instruction; a called subroutine counts as one step of its caller."""
    one = instructions[at]
    kind = one.opcode.partition(".")[0]
    if kind == "BSYNC":
        # Diverged threads meet at the place that the matching BSSY names: the nearest one before, as code is laid out.
        barrier = one.operands.split(",")[-1]
        for before in reversed(instructions[:at]):
            if before.opcode == "BSSY" and before.operands.startswith(barrier):
                return [labels[_TARGET.search(before.operands)[1]]]
    targets = []
    if kind in ("BRA", "WARPSYNC", "JMP") and (named := _TARGET.search(one.operands)):
        targets.append(labels[named[1]])
    if kind == "BRX":
        table = _TABLE.search(one.operands)
        targets += [labels[name.strip()] for name in table[1].split(",")]
    ends = kind in ("BRA", "BRX", "JMP", "EXIT", "RET") and not one.guarded and one.opcode != "BRA.DIV"
    conditional = kind == "BRA" and re.match(r"!?U?P\d", one.operands)  # BRA P0, target: the predicate as an operand
    if (not ends or conditional) and at + 1 < len(instructions):
        targets.append(at + 1)
    return targets


def _mark_loops(instructions: list[Instruction], labels: dict[str, int]) -> None:
    """An instruction is in a loop if control can come back to it: Tarjan's strongly connected components."""
    index, low, stack, on_stack = {}, {}, [], set()
    for root in range(len(instructions)):
        if root in index:
            continue
        work = [(root, None)]
        while work:
            at, rest = work.pop()
            if rest is None:
                index[at] = low[at] = len(index)
                stack.append(at)
                on_stack.add(at)
                rest = _successors(at, instructions, labels)
            for position, after in enumerate(rest):
                if after not in index:
                    work += [(at, rest[position:]), (after, None)]
                    break
                if after in on_stack:
                    low[at] = min(low[at], low[after])
            else:
                if low[at] == index[at]:
                    component = []
                    while not component or component[-1] != at:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        for member in component:
                            instructions[member].loop = at

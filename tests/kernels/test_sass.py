"""What the machine code of the kernels must hold, and must not: read from cubins, so no GPU is needed."""

import re
from dataclasses import dataclass, field

import pytest
import sass
from compilation import SOURCES
from simulation import CSRC, HERE

reads_machine_code = pytest.mark.skipif(
    sass.disassembler() is None,
    reason="no nvdisasm on the PATH, in a CUDA toolkit or in site-packages: pip install nvidia-cuda-nvdisasm",
)


@dataclass(frozen=True)
class Claim:
    """About all kernels whose name, as in ``epsilon_units<float, 4>``, matches the whole pattern."""

    kernels: str
    registers: int
    required: dict[str, int] = field(default_factory=dict)
    """Instructions, and how many there must be at least."""
    forbidden: tuple[str, ...] = ()
    long_divisions: int = 0
    """How many divisions of 64 bits, a hundred instructions each, may be in loops, which then set something up."""


# With 64 registers four blocks of 256 threads, or one of 1024, fit into a multiprocessor; with 80 three of 256.
PACKS = {r"LDG\.E\.128": 2, r"STG\.E\.128": 1}
TENSOR_CORES = {r"HMMA\.(16816|1688)\.F32": 1, r"LDGSTS\.E\.\S*128": 1, r"LDSM\.16\.M": 1}
TENSOR_OPCODES = ("HMMA", "LDGSTS", "LDSM")
CLAIMS = [
    Claim(r"epsilon_positions<\w+, [248], \d+>", 64, PACKS),
    Claim(r"epsilon_(units|groups)<\w+, [248]>", 80, PACKS),
    Claim(r"epsilon_positions<\w+, 1, \d+>", 64),
    Claim(r"epsilon_units<\w+, 1>", 64),
    Claim(r"epsilon_groups<\w+, 1>", 80),
    Claim(r"epsilon_combine<\w+>", 64),
    Claim(r"layer_norm_rows<\w+, [248], \d+>", 64, PACKS),
    Claim(r"layer_norm_rows<\w+, 1, \d+>", 64),
    Claim(r"add_relu_elements<\w+, [248]>", 32, PACKS),
    Claim(r"add_relu_elements<\w+, 1>", 32),
    Claim(r"accumulate_(units|classes)<\w+>", 64),
    Claim(r"max_pool_winners<\w+, [248], .*>", 64, {r"LDG\.E\.128": 1}),
    Claim(r"max_pool_winners<\w+, 1, .*>", 64),
    Claim(r"max_pool_carry<\w+, [248]>", 80, PACKS),
    Claim(r"max_pool_carry<\w+, 1>", 64),
    Claim(r"max_pool_combine<\w+>", 64),
    Claim(r"mask_slices", 64),
    Claim(r"radix_select<\w+>", 64),
    # 512 threads to a multiprocessor.
    Claim(r"product<TensorLoop<\w+(, \d+){4}>, \w+>", 128, TENSOR_CORES | PACKS),
    Claim(r"product<(Fma|Direct)Loop<\w+>, \w+>", 128, forbidden=TENSOR_OPCODES),
    # Three for every parity class, for which the compiler makes up to four copies: strides of 1 along either axis.
    Claim(r"product_combine<\w+>", 64, long_divisions=12),
    Claim(r"product_heads<\w+>", 64),
]


def complaints(kernel, claim):
    """What is wrong with a kernel: by its claim, and by what holds for all."""
    found = []
    if kernel.registers > claim.registers:
        found.append(f"{kernel.registers} registers, claimed are {claim.registers}")
    if kernel.stack or kernel.spilled or kernel.count(r"(LDL|STL)\b"):
        found.append("local memory")
    for pattern, least in claim.required.items():
        if kernel.count(pattern) < least:
            found.append(f"{kernel.count(pattern)} times {pattern}, claimed are {least}")
    found += [f"{pattern}, which is forbidden" for pattern in claim.forbidden if kernel.count(pattern)]
    # Every reciprocal is the start of something exact: of a quotient (which FCHK sends to a slow path where the fast
    # one would round wrongly), of a reciprocal with such a path, or of an integer division.
    exact = kernel.count("FCHK") + kernel.count(r"CALL.*rcp_rn_f32_slowpath") + kernel.count(r"I2F\.(U?\d*\.)?RP")
    if kernel.count(r"MUFU\.RCP\b") > exact:
        found.append("an approximate quotient")
    if kernel.count(r"MUFU\.(EX2|LG2|TANH|SIN|COS)\b"):
        found.append("an approximate function")
    divisions = [i.loop for i in kernel.matching(r"CALL.*_(div|rem)_[su]64") if i.loop is not None]
    if len(divisions) > claim.long_divisions:
        found.append(f"{len(divisions)} divisions of 64 bits in loops, claimed are {claim.long_divisions}")
    if {i.loop for i in kernel.matching("HMMA")} & set(divisions):
        found.append("a division of 64 bits between tensor-core instructions")
    return found


@reads_machine_code
def test_kernels_hold_what_is_claimed(architecture, cubin_of):
    kernels = {}
    for source in SOURCES:
        kernels |= sass.read(*cubin_of(source, architecture))
    assert len(kernels) > 50
    unmatched = {claim.kernels for claim in CLAIMS}
    found = []
    for name, kernel in kernels.items():
        matching = [claim for claim in CLAIMS if re.fullmatch(claim.kernels, name)]
        assert len(matching) == 1, f"{len(matching)} claims are about {name}: CLAIMS needs one line for every kernel"
        unmatched.discard(matching[0].kernels)
        found += [f"{name}: {complaint}" for complaint in complaints(kernel, matching[0])]
    assert not found, "\n".join(found)
    assert not unmatched, f"claims about no kernel at all: {unmatched}"


# What must be found in each kernel of planted.cu; None: nothing.
PLANTED = {
    "local_memory": (Claim("", 255), "local memory"),
    "narrow_loads": (Claim("", 255, {r"LDG\.E\.128": 1}), r"0 times LDG"),
    "narrow_stores": (Claim("", 255, {r"STG\.E\.128": 1}), r"0 times STG"),
    "wide": (Claim("", 255, {r"LDG\.E\.128": 1, r"STG\.E\.128": 1}), None),
    "approximate_quotient": (Claim("", 255), "an approximate quotient"),
    "approximate_exponential": (Claim("", 255), "an approximate function"),
    "exact_quotients": (Claim("", 255), None),
    "long_division_in_loop": (Claim("", 255), r"\d+ divisions of 64 bits in loops"),
    "long_division_before_loop": (Claim("", 255), None),
    "product_on_tensor_cores": (Claim("", 255, TENSOR_CORES), None),
    "product_with_long_divisions": (Claim("", 255, long_divisions=99), "a division of 64 bits between"),
    "product_by_hand": (Claim("", 255, {r"HMMA\.16816\.F32": 1}), r"0 times HMMA"),
}


@reads_machine_code
def test_planted_faults_are_found(cubin_of, architecture):
    kernels = sass.read(*cubin_of(HERE / "planted.cu", architecture))
    assert set(kernels) == set(PLANTED)
    for name, (claim, expected) in PLANTED.items():
        found = complaints(kernels[name], claim)
        if expected is None:
            assert not found, f"{name}: {found}"
        else:
            assert len(found) == 1 and re.match(expected, found[0]), f"{name}: {found}"
    wide = kernels["wide"]
    assert complaints(wide, Claim("", wide.registers - 1))
    assert complaints(wide, Claim("", 255, forbidden=(r"LDG\.E\.128",)))


def test_no_source_asks_for_approximations():
    """Where other reciprocals could hide one."""
    wrong = r"__fdividef|__(exp|log|pow|sin|cos|tan)\w*f\(|__frcp_r[^n]|use_fast_math|prec-(div|sqrt)|ftz=|\.approx"
    sources = [p for p in CSRC.rglob("*") if p.is_file()] + [CSRC.parent / "CMakeLists.txt", CSRC.parent / "setup.py"]
    assert len(sources) > 20
    for source in sources:
        assert not re.search(wrong, source.read_text()), source

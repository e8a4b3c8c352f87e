"""The loops of the CPU kernels beyond 2^32 elements: the last rows of 2^28, in memory that takes none."""

import ctypes
import subprocess

import pytest
import torch
from cases import close, normal
from max_pool_cases import Shape, images_of, shape_of
from simulation import COMPILER, CSRC, HERE
from sparse_memory import zeros

from pxp_fast.ops import ACTIVATIONS
from pxp_fast.ops.epsilon import reference as epsilon_reference
from pxp_fast.ops.layer_norm import reference as layer_norm_reference
from pxp_fast.ops.max_pool import reference as max_pool_reference
from pxp_fast.ops.max_pool import reference_epsilon as max_pool_epsilon_reference

SCALE, SCALE_AND_SUM = 0, 2
ROWS, COLUMNS, SOME = 2**28, 24, 3
EPS, F32 = 1e-2, torch.float32


def structure(name, **fields):
    return type(
        name, (ctypes.Structure,), {"_fields_": [(f, t) for t, names in fields.values() for f in names.split()]}
    )


AddReluTask = structure("AddReluTask", kind=(ctypes.c_int, "type"), pointers=(ctypes.c_void_p, "a b result"))
MaxPoolTask = structure(
    "MaxPoolTask",
    kind=(ctypes.c_int, "type"),
    stabilizes=(ctypes.c_bool, "stabilizes"),
    eps=(ctypes.c_double, "eps"),
    pointers=(ctypes.c_void_p, "value carry rest result sums"),
    sizes=(ctypes.c_int64, "sums_which sums_image tile tiles"),
    shape=(Shape, "shape"),
)
LayerNormTask = structure(
    "LayerNormTask",
    kind=(ctypes.c_int, "type"),
    eps=(ctypes.c_double, "eps"),
    pointers=(ctypes.c_void_p, "carry output residual join result rstd weight"),
    sizes=(ctypes.c_int64, "rows columns"),
)
EpsilonTask = structure(
    "EpsilonTask",
    kind=(ctypes.c_int, "type activation pass_"),
    add=(ctypes.c_bool, "add"),
    eps=(ctypes.c_double, "eps"),
    pointers=(ctypes.c_void_p, "carry output scaled sums partials"),
    sizes=(ctypes.c_int64, "samples rows columns units group block_rows blocks"),
    strides=(ctypes.c_int64, "carry_sample carry_row output_sample output_row scaled_sample scaled_row"),
    sums=(ctypes.c_int64, "sums_which sums_sample"),
)


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no g++ to compile the loops with")
    library = tmp_path_factory.mktemp("loops") / "loops.so"
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", "-DPXP_ISA=baseline"]
    command += ["-fno-math-errno", "-fno-trapping-math", "-I", str(CSRC), str(HERE / "cpu_loops.cpp")]
    command += [str(CSRC / "cpu" / f"{stem}_loops.cpp") for stem in ("add_relu", "epsilon", "layer_norm", "max_pool")]
    done = subprocess.run([*command, "-o", str(library)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    assert loaded.add_relu_task_size() == ctypes.sizeof(AddReluTask)
    assert loaded.max_pool_task_size() == ctypes.sizeof(MaxPoolTask)
    assert loaded.layer_norm_task_size() == ctypes.sizeof(LayerNormTask)
    assert loaded.epsilon_task_size() == ctypes.sizeof(EpsilonTask)
    return loaded


def last_rows(seed):
    """Zeros, but for random values in the last rows."""
    tensor = zeros(ROWS * COLUMNS, F32).view(1, ROWS, COLUMNS)
    tensor[:, -SOME:] = normal((SOME, COLUMNS), F32, seed)
    return tensor


def run(loop, task, begin, end):
    loop(ctypes.byref(task), ctypes.c_int64(begin), ctypes.c_int64(end))


def epsilon_task(samples, units, *, block_rows=1, blocks=1, pass_=SCALE_AND_SUM, **tensors):
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    strides = dict.fromkeys(("carry_sample", "output_sample", "scaled_sample"), ROWS * COLUMNS)
    strides |= dict.fromkeys(("carry_row", "output_row", "scaled_row"), COLUMNS)
    return EpsilonTask(
        type=1, activation=ACTIVATIONS.index("relu"), eps=EPS, samples=samples, rows=ROWS, columns=COLUMNS, units=units,
        group=1, block_rows=block_rows, blocks=blocks, pass_=pass_, sums_which=samples * units, sums_sample=units,
        **pointers, **strides,
    )  # fmt: skip


def test_epsilon_scale_in_place(loops):
    carry, output = last_rows(0), last_rows(1)
    last = carry[:, -SOME:].clone(), output[:, -SOME:].clone()
    task = epsilon_task(1, ROWS, pass_=SCALE, carry=carry, output=output, scaled=carry)
    run(loops.run_scale, task, ROWS - SOME, ROWS)
    close(carry[:, -SOME:], epsilon_reference(*last, EPS, "relu", 1, 1)[0], F32)


def test_epsilon_positions(loops):
    carry, output, scaled = last_rows(0), last_rows(1), zeros(ROWS * COLUMNS, F32).view(1, ROWS, COLUMNS)
    sums = zeros(2 * ROWS, F32).view(2, 1, ROWS)
    task = epsilon_task(1, ROWS, carry=carry, output=output, scaled=scaled, sums=sums)
    run(loops.run_positions, task, ROWS - SOME, ROWS)
    last = carry[:, -SOME:].clone(), output[:, -SOME:].clone()
    expected, expected_sums = epsilon_reference(*last, EPS, "relu", 1, 1)
    close(scaled[:, -SOME:], expected, F32)
    torch.testing.assert_close(sums[..., -SOME:], expected_sums, rtol=1e-5, atol=1e-5)


def test_epsilon_units(loops):
    """The last block of two rows; there are 2^27, with two sums of every column each."""
    carry, output, scaled = last_rows(0), last_rows(1), zeros(ROWS * COLUMNS, F32).view(1, ROWS, COLUMNS)
    blocks = ROWS // 2
    partials = zeros(blocks * 2 * COLUMNS, F32).view(blocks, 2, COLUMNS)
    task = epsilon_task(
        1, COLUMNS, block_rows=2, blocks=blocks, carry=carry, output=output, scaled=scaled, partials=partials
    )
    run(loops.run_units, task, blocks - 1, blocks)
    expected, expected_sums = epsilon_reference(carry[:, -2:].clone(), output[:, -2:].clone(), EPS, "relu", -1, 1)
    close(scaled[:, -2:], expected, F32)
    torch.testing.assert_close(partials[-1], expected_sums[:, 0], rtol=1e-5, atol=1e-5)


def test_epsilon_combine(loops):
    """The last samples of 2^27."""
    samples, blocks = 2**27, 2
    partials = zeros(samples * blocks * 2 * COLUMNS, F32).view(samples, blocks, 2, COLUMNS)
    partials[-SOME:] = normal((SOME, blocks, 2, COLUMNS), F32, 0)
    sums = zeros(2 * samples * COLUMNS, F32).view(2, samples, COLUMNS)
    task = epsilon_task(samples, COLUMNS, blocks=blocks, partials=partials, sums=sums)
    run(loops.run_combine, task, samples - SOME, samples)
    torch.testing.assert_close(sums[:, -SOME:], partials[-SOME:].sum(1).movedim(1, 0))


def test_add_relu(loops):
    a, b = (last_rows(seed).flatten() for seed in range(2))
    result = zeros(ROWS * COLUMNS, F32)
    task = AddReluTask(1, a.data_ptr(), b.data_ptr(), result.data_ptr())
    last = SOME * COLUMNS
    run(loops.run_add_relu, task, ROWS * COLUMNS - last, ROWS * COLUMNS)
    assert torch.equal(result[-last:], torch.relu(a[-last:] + b[-last:]))


def test_max_pool(loops):
    """The last samples of 2^28, each of 2 x 3 positions and 4 channels."""
    window, channels = ((2, 2), (1, 1), (0, 0), (1, 1), False), 4
    shape, pooled = shape_of(ROWS, channels, channels, (2, 3), window)
    value, rest, result = (zeros(ROWS * COLUMNS, F32).view(ROWS, 2, 3, channels) for _ in range(3))
    out, carry = (zeros(ROWS * 2 * channels, F32).view(ROWS, *pooled, channels) for _ in range(2))
    sums = zeros(2 * ROWS * channels, F32).view(2, ROWS, channels)
    for seed, tensor in enumerate((value, rest, carry)):
        tensor[-SOME:] = normal((SOME, *tensor.shape[1:]), F32, seed)
    task = MaxPoolTask(1, True, EPS, value.data_ptr(), None, None, out.data_ptr(), None, 0, 0, 0, 0, shape)
    run(loops.run_max_pool, task, ROWS - SOME, ROWS)
    last = [images_of(t[-SOME:], True).contiguous() for t in (carry, value, rest)]
    assert torch.equal(images_of(out[-SOME:], True), max_pool_reference(last[1], *window))

    pointers = (t.data_ptr() for t in (value, carry, rest, result, sums))
    task = MaxPoolTask(1, True, EPS, *pointers, ROWS * channels, channels, channels, 1, shape)
    run(loops.run_max_pool_epsilon, task, ROWS - SOME, ROWS)
    expected_sums = torch.zeros(2, SOME, channels)
    close(images_of(result[-SOME:], True), max_pool_epsilon_reference(*last, expected_sums, *window, EPS), F32)
    torch.testing.assert_close(sums[:, -SOME:], expected_sums, rtol=1e-5, atol=1e-5)


def test_layer_norm(loops):
    carry, output, rest, total = (last_rows(seed)[0] for seed in range(4))
    result, rstd = zeros(ROWS * COLUMNS, F32).view(ROWS, COLUMNS), zeros(ROWS, F32).view(ROWS, 1)
    rstd[-SOME:], weight = 0.5, normal((COLUMNS,), F32, 4)
    pointers = (t.data_ptr() for t in (carry, output, rest, total, result, rstd, weight))
    task = LayerNormTask(1, EPS, *pointers, ROWS, COLUMNS)
    run(loops.run_layer_norm, task, ROWS - SOME, ROWS)
    last = (t[-SOME:].clone() for t in (carry, output, rstd))
    expected = layer_norm_reference(*last, weight, rest[-SOME:].clone(), EPS, total[-SOME:].clone())
    close(result[-SOME:], expected, F32)

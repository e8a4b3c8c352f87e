"""Products broken on purpose: some order of threads, or some moment for copies to land, must give them away."""

import large_product_cases
import product_cases as cases
import pytest
import torch
from mutants import is_caught
from product_cases import DIRECT, FMA, SMALL
from simulation import COPIES, ORDERS

F32 = torch.float32
MODES = [(order, copies) for order in ORDERS for copies in COPIES]
LOOP, EPILOGUE, SHAPE, GENERAL = (f"kernels/product{part}.cuh" for part in ("", "_epilogue", "_shape", "_general"))


def linear(library, order, copies):
    """More slices than stages, a rest in the last, which lies where the sums go, and samples that share tiles."""
    cases.linear(library, order, SMALL, (3, 37, 72), 132, F32, copies=copies)


def few_features(library, order, copies):
    """A stage's first slice has a rest: where nothing fills it, it is still as the block found it."""
    cases.linear(library, order, SMALL, (3, 37, 72), 12, F32, copies=copies)


def few_features_in_bfloat16(library, order, copies):
    cases.linear(library, order, SMALL, (3, 37, 72), 24, torch.bfloat16, copies=copies)


def heads(library, order, copies):
    cases.linear(library, order, SMALL, (3, 37, 64), 16, F32, copies=copies, head=32)


def wide_heads(library, order, copies):
    cases.linear(library, order, SMALL, (3, 9, 160), 16, F32, copies=copies, head=80)


def strided(library, order, copies):
    settings = {"padding": (1, 1), "stride": (2, 2)}
    cases.convolution(library, order, SMALL, (2, 8, 9, 8), 8, (3, 3), F32, copies=copies, **settings)


def general(library, order, copies):
    cases.linear(library, order, FMA, (2, 40, 70), 37, F32, copies=copies)


def direct(library, order, copies):
    cases.convolution(library, order, DIRECT, (1, 6, 5, 5), 12, (3, 3), F32, copies=copies, groups=3)


def far_apart(library, order, copies):
    large_product_cases.far_apart(library, order, SMALL, copies)


def many_rows(library, order, copies):
    large_product_cases.many_rows(library, order, SMALL, copies)


WAIT = "      copy_async_wait<kStages - 2>();\n"
ARRIVED = "      // All copies of this slice are here, and nobody reads the stage of the one before any more.\n"
NEXT = "      if (slice + kStages - 1 < slices) feed.next(stages + free_stage * kStageElements);\n"
COMMIT = "      copy_async_commit();\n#pragma unroll\n      for (int depth"
COPY_SCALED = "        copy_async(stage + scaled_row(pass)"
COPY_WEIGHTS = "        copy_async(weights + pass * kStep"

# File, what stands there, what the mutant has instead, and the case that must fail.
PRODUCTS = {
    "no barrier before a slice is read and another overwritten": (
        LOOP, ARRIVED + "      __syncthreads();\n", "", linear),
    "a wait for one slice too few": (LOOP, "copy_async_wait<kStages - 2>", "copy_async_wait<kStages - 1>", linear),
    "a slice overwritten while others read it": (
        LOOP, WAIT + ARRIVED + "      __syncthreads();\n" + NEXT, NEXT + WAIT + "      __syncthreads();\n", linear),
    "groups of copies that end with the features": (
        LOOP, NEXT + COMMIT, NEXT.replace("feed.next", "copy_async_commit(), feed.next") + COMMIT[26:], linear),
    "a stage used twice in turn": (LOOP, "stage + 1 == kStages ? 0", "stage + 1 == kStages ? 1", linear),
    "sums written over operands that others read": (
        LOOP, "    __syncthreads();\n    const int lane", "    const int lane", linear),
    "no barrier behind the table of rows": (
        LOOP, "(rows, tile, shape);\n  __syncthreads();", "(rows, tile, shape);", linear),
    "no barrier before the sums are finished": (LOOP, "  __syncthreads();\n  finish_tile", "  finish_tile", linear),
    "a slice too few": (LOOP, "(shape.features + kDepth - 1) / kDepth", "shape.features / kDepth", linear),
    "a slice that reads on in the next row": (
        LOOP, "feature + scaled_feature() < shape.features", "feature + scaled_feature() <= shape.features", linear),
    "no zeros behind the last feature": (
        LOOP, COPY_SCALED, COPY_SCALED.replace("copy", "if (there) copy"), few_features),
    "no zeros behind the last feature's weights": (
        LOOP, COPY_WEIGHTS, COPY_WEIGHTS.replace("copy", "if (there) copy"), few_features),
    "something else than zeros beyond an image's edge": (
        LOOP, "scaled,\n                   there);", "scaled,\n                   true);", strided),
    "taps that stay where they are": (LOOP, "        tap.next(tile, shape);\n", "", strided),
    "a forgotten tap": (SHAPE, "/ result.tap_step + 1;", "/ result.tap_step;", strided),
    "the taps of another parity": (
        SHAPE, "start = parity + shape.padding[axis]", "start = shape.padding[axis]", strided),
    "the pixels of another parity": (
        SHAPE, "(tile.axis[axis].first + int64_t(position[axis])", "(int64_t(position[axis])", strided),
    "an image that goes on beyond its edge": (SHAPE, "unsigned(column + offset[1]) <", "unsigned(column) <", strided),
    "no barrier before the columns are summed": (
        EPILOGUE, "if (!partials) return;\n  __syncthreads();", "if (!partials) return;", linear),
    "samples that flow into one": (EPILOGUE, "end < tile.rows ? int(end) : tile.rows", "tile.rows", linear),
    "samples sought in their first segment only": (EPILOGUE, "++tile, segment = 0", "++tile", linear),
    "a tile forgotten": (EPILOGUE, "tile <= last", "tile < last", linear),
    "half a head": (EPILOGUE, "k += Loop::kPack) head", "k += 2 * Loop::kPack) head", heads),
    "a head's rows added without their lane": (EPILOGUE, "row = first + lane", "row = first", heads),
    "wide heads a channel short": (EPILOGUE, "k < shape.head; ++k", "k + 1 < shape.head; ++k", wide_heads),
    "a general slice read before it is there": (
        GENERAL, "        __syncthreads();\n#pragma unroll 4", "#pragma unroll 4", general),
    "a general slice overwritten while others read it": (
        GENERAL, "        }\n        __syncthreads();\n      }\n    }\n", "        }\n      }\n    }\n", general),
    "features of the first group for all": (
        GENERAL, "int64_t(channel / shape.group_channels) * shape.features", "0", direct),
    "samples found by 32 bits": (
        SHAPE, "output = sample * shape.output.sample", "output = int(sample * shape.output.sample)", far_apart),
    "features found by 32 bits": (
        LOOP, "weight + feature * shape.weight.sample", "weight + int(feature * shape.weight.sample)", far_apart),
    "taps found by 32 bits": (
        SHAPE, "scaled += offset[axis] * shape.scaled.axis[axis]",
        "scaled += int(offset[axis] * shape.scaled.axis[axis])", far_apart),
    "positions found by 32 bits": (
        SHAPE, "scaled += position[axis] * shape.scaled.axis[axis]",
        "scaled += int(position[axis] * shape.scaled.axis[axis])", many_rows),
}  # fmt: skip
# Tensor cores take 16-bit factors another way.
BFLOAT16 = {
    "no zeros behind the last feature, in bfloat16": (
        LOOP, COPY_SCALED, COPY_SCALED.replace("copy", "if (there) copy"), few_features_in_bfloat16),
    "weights of the neighbouring channels": (
        LOOP, "b[j][1] = pair[1], b[j + 1][0] = pair[2]", "b[j][1] = pair[2], b[j + 1][0] = pair[1]",
        few_features_in_bfloat16),
    "the first 16 bytes of every row twice": (
        LOOP, "depth + lane / 16 * kPack", "depth", few_features_in_bfloat16),
}  # fmt: skip
MUTANTS = {
    name: ("product", *mutant, dtype, case)
    for dtype, mutants in ((F32, PRODUCTS), (torch.bfloat16, BFLOAT16))
    for name, (*mutant, case) in mutants.items()
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, mutant):
    library, case = mutant(name), MUTANTS[name][-1]
    caught = any(is_caught(lambda mode=mode: case(library, *mode)) for mode in MODES)
    assert caught, "no order of threads and no moment of landing gave it away"


@pytest.mark.parametrize("case", dict.fromkeys(mutant[-1] for mutant in MUTANTS.values()))
def test_nothing_is_caught_where_nothing_is_broken(case, simulated):
    for mode in MODES:
        case(simulated("product"), *mode)

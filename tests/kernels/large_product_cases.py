"""The products beyond 2^32 elements; see large_cases.py."""

import torch
from cases import normal
from product_cases import check, launch
from simulation import last_blocks
from sparse_memory import BILLIONS, zeros

F32 = torch.float32


def far(shape, strides, seed=None):
    """Random values, or zeros, in memory of zeros."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    tensor = zeros(elements, F32).as_strided(shape, strides)
    return tensor if seed is None else tensor.copy_(normal(shape, F32, seed))


def far_apart(library, order, loop, copies="lazy"):
    """A convolution whose samples, rows, features and sums lie 2^30 elements and more from one to the next; of features
    there are more than are multiplied at a time."""
    shape, strides = (2, 8, 5, 3), (5 * BILLIONS, 1, BILLIONS, 2**20)
    settings = {"stride": (2, 1), "padding": (1, 1)}
    tensors = [
        far((2, 24, 3, 3), strides, 1),
        far((24, 8, 3, 3), (2**30, 1, 24, 8), 2),
        far(shape, strides, 3),
        far(shape, strides, 4),
    ]
    result = far(shape, strides)
    sums = far((2, 2, 8), (2 * BILLIONS, BILLIONS, 1), 5)
    before = sums.clone()
    launch(library, order, copies, loop, tensors, result, sums, **settings)
    check(loop, [t.contiguous() for t in tensors], result.contiguous(), sums, before, **settings)


def many_rows(library, order, loop, copies="lazy"):
    """A linear layer: the last tile of 2^28 positions."""
    positions, channels, some = 2**28, 16, 64
    shape, strides = (1, channels, 1, positions), (positions * channels, 1, positions * channels, channels)
    tensors = [far(shape, strides) for _ in range(4)]
    tensors[1] = normal((channels, 1, 1, channels), F32, 2).permute(0, 3, 1, 2)
    result = far(shape, strides)
    for seed in (0, 2, 3):
        tensors[seed][..., -some:] = normal((1, channels, 1, some), F32, seed)
    with last_blocks(library, 1):
        launch(library, order, copies, loop, tensors, result, None)
    last = [t if t is tensors[1] else t[..., -some:].clone() for t in tensors]
    check(loop, last, result[..., -some:].clone(), None, torch.zeros(2, 1, channels))

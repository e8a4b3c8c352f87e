"""`share_` against what each form means, one element at a time."""

import os
import subprocess
import sys

import pytest
import torch

from pxp_fast import ops
from pxp_fast.errors import PxpError
from pxp_fast.ops import FORMS

TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
EPS, FIRST, SECOND = 1e-3, 1.5, 0.5


def quotient(relevance: float, denominator: float) -> float:
    return relevance / (denominator + EPS) if denominator > 0 else 0.0


def one(relevance: float, z: float, g: float, form: str) -> tuple[float, float | None]:
    """The table of the docstring."""
    if form == "plain":
        return quotient(relevance, g), None
    if form == "positive":
        return quotient(relevance, g + z), None
    if form == "gamma":
        v = quotient(relevance, g + FIRST * abs(z))
        return v * ((z > 0) - (z < 0)), v
    if form == "both":
        return FIRST * quotient(relevance, g), SECOND * quotient(relevance, g - z)
    p, n = FIRST * quotient(relevance, g + z), SECOND * quotient(relevance, g - z)
    return p + n, p - n


def arguments(shape, dtype, device, seed=0) -> list[torch.Tensor]:
    """Carry, output and a product that is mostly larger than the output, with zeros and the odd negative entry."""
    generator = torch.Generator().manual_seed(seed)
    carry, z, g = (torch.randn(shape, generator=generator) for _ in range(3))
    g = g.abs() + z.abs() * (g > -1)
    z[0, 0], g[0, 1], g[0, 2] = 0, 0, -0.5
    g[0, 0] = 0
    return [t.to(device, dtype) for t in (carry, z, g)]


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels last":
        return tensor.clone(memory_format=torch.channels_last)
    if layout == "slice":
        return torch.cat((tensor, tensor), -1)[..., : tensor.shape[-1]]
    return tensor.clone()


@pytest.mark.parametrize("given", [False, True], ids=["carry", "relevance"])
@pytest.mark.parametrize("form", FORMS)
def test_every_element_is_what_the_form_says(form, given, dtype, device):
    carry, z, g = arguments((3, 5, 7, 11), dtype, device)
    relevance = carry.double() if given else carry.double() * z.double()
    truth = [
        one(*element, form)
        for element in zip(relevance.flatten().tolist(), z.flatten().tolist(), g.flatten().tolist(), strict=True)
    ]
    factors = {"form": form, "eps": EPS, "first": FIRST, "second": SECOND, "given": given}
    for layout in ("contiguous", "channels last", "slice"):
        tensors = [laid_out(t, layout) for t in (carry, z, g)]
        results = ops.share_(*tensors, **factors)
        assert torch.equal(tensors[1], z)
        if layout != "slice":
            assert results[0] is tensors[0] and results[1] is tensors[2]
        for index, result in enumerate(results):
            if truth[0][index] is not None:
                expected = torch.tensor([t[index] for t in truth], dtype=torch.float64).view(z.shape)
                scale = expected.abs().max().item()
                torch.testing.assert_close(
                    result.cpu().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale * 1e-3
                )


def test_strides_that_differ_are_brought_to_those_of_the_output(device):
    carry, z, g = arguments((2, 4, 5, 3), torch.float32, device)
    expected = ops.share_(carry.clone(), z, g.clone(), form="both")
    mixed = ops.share_(carry.expand_as(z), laid_out(z, "channels last"), g.clone(), form="both")
    for found, wanted in zip(mixed, expected, strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_so(form, device):
    carry, z, g = (torch.full((2, 300), 2.0, device=device) for _ in range(3))
    g += 1
    g[0, 7], z[1, 5], carry[1, 250] = float("nan"), float("nan"), float("nan")
    result, _ = ops.share_(carry, z, g, form=form)
    assert result.isnan().nonzero().tolist() == [[0, 7], [1, 5], [1, 250]]


def test_threads_and_instruction_sets_give_the_same_bits(threads):
    script = (
        "import torch; from pxp_fast import ops; torch.manual_seed(0);"
        "t = [torch.randn(100000) for _ in range(3)]; t[2] = t[2].abs();"
        "found = [sum(r.view(torch.int32).tolist()) for r in ops.share_(*t, form='both signed')]"
    )
    here: dict = {}
    threads(2)
    exec(script, here)
    command = [sys.executable, "-c", f"{script}; print(found)"]
    environment = {**os.environ, "PXP_ISA": "baseline", "OMP_NUM_THREADS": "1"}
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert there.strip() == str(here["found"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "half"}, "no form 'half'; choose one of plain, positive"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"output": torch.ones(2, 3)}, "output is torch.float32 .2, 3."),
        ({"product": torch.ones(2, 4).double()}, "product is torch.float64"),
        ({"carry": torch.ones(2, 4).long(), "output": torch.ones(2, 4).long(), "product": torch.ones(2, 4).long()},
         "pass floating-point tensors"),
    ],
)  # fmt: skip
def test_bad_arguments(change, message):
    tensors = {name: torch.ones(2, 4) for name in ("carry", "output", "product")}
    with pytest.raises(PxpError, match=message):
        ops.share_(**{**tensors, **change})

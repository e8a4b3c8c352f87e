"""What scoring is compared with: torch's forward and input gradient, zennit, LXT. Each has a process of its own.

zennit's and LXT's hooks and patches reach all of the process they are in, so `Peer` starts one per contender; the bench
then lets them take turns. Every contender sees the same network, images and labels, and leaves per-unit relevance sums
behind where it computes relevance at all.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from importlib.metadata import version

import torch
import torchvision
from torch import Tensor, nn

from .timing import Call, measure

NETWORKS = ("resnet18", "resnet50", "vgg16", "vgg16_bn", "vit_b_16")
CONVOLUTIONAL = NETWORKS[:4]

Contender = Callable[[], object]


def network(name: str) -> nn.Module:
    """A torchvision classifier with random weights, biases that are not zero, and a head that is not."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.05)
            elif key == "heads.head.weight":
                parameter.normal_(std=0.02)
    # Parameters keep requires_grad, as a user's do: without it ATen multiplies transposed tokens by copies of weights.
    # No gradient of a parameter is computed, since only the image's is asked for.
    return model


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Images [size, 3, 224, 224] and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 224, 224, generator=generator)
    return images, torch.randint(0, 1000, (size,), generator=generator)


def gradient(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Contender:
    """Forward, and the gradient of the label's logit with respect to the image: the yardstick."""
    model, images = model.to(dtype), images.to(dtype)

    def run() -> Tensor:
        x = images.detach().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)[0]

    return run


def pxp_fast(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype, fast: bool = False) -> Contender:
    """Scores of every unit, accumulated: what `pxp_fast.score` does for each batch after its one capture."""
    from pxp_fast import ops
    from pxp_fast.criteria import Relevance

    relevance = Relevance(model, images, dtype=dtype, fast=fast)
    totals = torch.zeros(4, sum(group.count for group in relevance.units), dtype=torch.float64)
    return lambda: ops.accumulate_(totals, relevance.run(images, labels))


def zennit(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Contender:
    """zennit's epsilon rule with its canonizers, registered once; unit sums read at every convolution and linear."""
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Activation, AvgPool, BatchNorm, Linear

    rules = [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm()), (BatchNorm, Pass()), (Linear, Epsilon(1e-6))]
    canonizer = ResNetCanonizer() if isinstance(model, torchvision.models.ResNet) else VGGCanonizer()
    LayerMapComposite(rules, canonizers=[canonizer]).register(model)
    sums: dict[str, Tensor] = {}
    read_gradients(model, (nn.Conv2d, nn.Linear), sums, times_value=False)
    eye = torch.eye(1000)

    def run() -> dict[str, Tensor]:
        x = images.detach().clone().requires_grad_()
        torch.autograd.grad(model(x), x, eye[labels])
        return sums

    return run


def lxt(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype, epsilon: bool = False) -> Contender:
    """LXT's efficient AttnLRP on torchvision's ViT; `epsilon` adds zennit's rule, as LXT patches it, to linears."""
    patch_lxt()
    if epsilon:
        from lxt.efficient.zennit_patches import monkey_patch_zennit
        from zennit.composites import LayerMapComposite
        from zennit.rules import Epsilon

        monkey_patch_zennit()
        LayerMapComposite([((nn.Linear,), Epsilon(1e-6))]).register(model)
    sums: dict[str, Tensor] = {}
    read_gradients(model, (nn.Linear,), sums, times_value=True)

    def run() -> dict[str, Tensor]:
        x = images.detach().clone().requires_grad_()
        logits = model(x)
        chosen = logits.gather(1, labels[:, None])
        torch.autograd.grad(chosen, x, 1 / chosen.detach())
        return sums

    return run


def patch_lxt() -> None:
    """LXT's rules on torchvision's attention, layer norm and GELU, for the whole process."""
    import transformers.pytorch_utils as utilities

    # LXT 2.1 imports helpers for language models that transformers 5 no longer has and that are not used here.
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
        if not hasattr(utilities, name):
            setattr(utilities, name, None)
    from lxt.efficient.patches import layer_norm_forward, non_linear_forward, patch_method
    from lxt.efficient.rules import divide_gradient

    def attention(self, query, key, value, *args, **kwargs):
        parts = divide_gradient(query, 4), divide_gradient(key, 4), divide_gradient(value, 2)
        return self.original_forward(*parts, *args, **kwargs)

    patch_method(attention, nn.MultiheadAttention, keep_original=True)
    patch_method(layer_norm_forward, nn.LayerNorm)
    patch_method(non_linear_forward, nn.GELU, keep_original=True)


def read_gradients(model: nn.Module, kinds: tuple, sums: dict[str, Tensor], *, times_value: bool) -> None:
    """Leave the relevance sum [N, units] of every such layer in `sums`; times its value where gradients are carries."""

    def attach(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            value = output.detach() if times_value else None

            def read(gradient: Tensor) -> None:
                relevance = gradient if value is None else gradient * value
                dims = (2, 3) if isinstance(module, nn.Conv2d) else tuple(range(1, relevance.dim() - 1))
                sums[name] = relevance.sum(dims) if dims else relevance.clone()

            output.register_hook(read)

        return hook

    for name, module in model.named_modules():
        # The output projection's module is never called: attention reads its weight.
        if isinstance(module, kinds) and not name.endswith("out_proj"):
            module.register_forward_hook(attach(name))


BUILDERS = {
    "gradient": gradient,
    "pxp_fast": pxp_fast,
    "pxp_fast fast": lambda *args: pxp_fast(*args, fast=True),
    "zennit": zennit,
    "lxt": lxt,
    "lxt+epsilon": lambda *args: lxt(*args, epsilon=True),
}
# Who runs on which network, in which dtype; the yardstick comes first.
CONTENDERS = {
    "gradient": ("gradient", torch.float32, NETWORKS),
    "pxp_fast": ("pxp_fast", torch.float32, NETWORKS),
    "pxp_fast fast": ("pxp_fast fast", torch.float32, NETWORKS),
    "zennit": ("zennit", torch.float32, CONVOLUTIONAL),
    "lxt": ("lxt", torch.float32, ("vit_b_16",)),
    "lxt+epsilon": ("lxt+epsilon", torch.float32, ("vit_b_16",)),
    "gradient bfloat16": ("gradient", torch.bfloat16, NETWORKS),
    "pxp_fast bfloat16": ("pxp_fast", torch.bfloat16, NETWORKS),
}


def versions() -> dict[str, str]:
    """Of what is compared."""
    names = ("torch", "torchvision", "zennit", "lxt", "transformers", "pxp-fast")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            from pxp_fast.version import __version__

            found[name] = __version__ if name == "pxp-fast" else "not installed"
    return found


def serve(pipe, contender: str, model: str, images: int, threads: int) -> None:
    """Build a contender, say so, then run and time it once for every request until there are no more."""
    torch.set_num_threads(threads)
    builder, dtype, _ = CONTENDERS[contender]
    run = BUILDERS[builder](network(model), *batch(images), dtype)
    pipe.send("ready")
    while pipe.recv() == "run":
        pipe.send(measure(run))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Peer:
    """A contender in a process of its own."""

    def __init__(self, contender: str, model: str, images: int, threads: int) -> None:
        # An idle contender must sleep, not spin, while another one's time is taken.
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        context = multiprocessing.get_context("spawn")
        self.contender = contender
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, contender, model, images, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._expect()

    def _expect(self):
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{self.contender} ended with exit status {self._process.exitcode}; see above") from None

    def run(self) -> Call:
        self._pipe.send("run")
        return self._expect()

    def close(self) -> float:
        """End the process; its peak memory in MB."""
        self._pipe.send("end")
        peak = self._expect()
        self._process.join()
        return peak

"""Layer-wise relevance propagation written from its definition, for small networks: float64, slow, in relevance form.

The package carries relevance divided by activation and never looks at relevance itself. Here every tensor has its
relevance, every rule says how the relevance of an output is shared among the inputs, and nothing is fused, cut off or
folded. The network is read with `torch.fx.symbolic_trace`, module by module, not with the package's own capture.

Conventions (all-epsilon composite), with ``stab(z) = z + eps * sgn(z)`` and ``sgn(0) = +1``:

- an affine map ``z = A x + b``: ``R_x = x * A^T (R_z / stab(z))`` (Bach et al. 2015, eq. 58); batch norm behind a
  convolution or linear layer is part of that layer;
- normalisation: affine, its scale statistics held constant (AttnLRP, Achtibat et al. 2024);
- activation functions: the relevance passes; gates (sigmoid, hardsigmoid) and softmax: gradient times input;
- sums: in proportion to the summands; products of two data tensors: half and half; products of matrices: every term
  ``a_ij b_jk`` gets ``a_ij b_jk / stab(2 o_ik)`` of the output's relevance, on each side (AttnLRP, eq. 14).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ATTENTION = F.scaled_dot_product_attention

PASS = {
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Tanh,
    F.relu, F.relu6, F.hardtanh, F.gelu, F.silu, F.hardswish, F.leaky_relu, F.elu, torch.relu,
    torch.tanh, "relu", "relu_", "tanh", operator.neg, torch.neg,
}  # fmt: skip
GATE = {nn.Sigmoid, nn.Hardsigmoid, torch.sigmoid, F.sigmoid, F.hardsigmoid, "sigmoid"}
SOFTMAX = {nn.Softmax, F.softmax, torch.softmax, "softmax"}
AFFINE = {nn.Conv2d, nn.Conv1d, nn.Linear, nn.ConvTranspose2d}
BATCH_NORM = {nn.BatchNorm1d, nn.BatchNorm2d}
AVERAGE = {
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean",
}  # fmt: skip
MAX_POOL = {nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d, "amax"}
STRUCTURE = {
    nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d, nn.Unflatten, nn.PixelShuffle, nn.Upsample,
    torch.flatten, torch.cat, torch.chunk, torch.split, torch.roll, torch.stack, torch.transpose, torch.permute,
    torch.narrow, F.pad, F.dropout, F.pixel_shuffle, operator.getitem,
    "flatten", "view", "reshape", "permute", "transpose", "chunk", "split", "unbind", "contiguous", "expand", "roll",
    "squeeze", "unsqueeze", "flip", "clone", "narrow", "movedim", "unflatten",
}  # fmt: skip
ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
SUBTRACT = {operator.sub, torch.sub, "sub"}
MULTIPLY = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
DIVIDE = {operator.truediv, torch.div, "div"}
MATMUL = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"}
STATISTIC = {
    torch.rsqrt, torch.sqrt, torch.var, torch.std, torch.linalg.vector_norm, "rsqrt", "sqrt", "var", "std", "norm",
}  # fmt: skip
IRRELEVANT = {"pow", "square", torch.square, operator.pow, "size", getattr, "type", "detach"}


def stab(z: Tensor, epsilon: float) -> Tensor:
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z)


def share(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator where the denominator is not zero, else 0: nothing was there to be shared."""
    zero = denominator == 0
    return torch.where(zero, torch.zeros_like(numerator), numerator / denominator.masked_fill(zero, 1))


def pull_back(function: Callable[..., Tensor], inputs: list[Tensor], cotangent) -> list[Tensor]:
    """The transposed Jacobian of `function` at `inputs`, times `cotangent`."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        gradients = torch.autograd.grad(outputs, leaves, cotangent, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def epsilon_rule(affine: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """R_x = x * A^T (R_z / stab(z)) for an affine map z = A x + b."""
    z = affine(x)
    return x * pull_back(affine, [x], relevance / stab(z, epsilon))[0]


def matmul_rule(a: Tensor, b: Tensor, relevance: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Each term a_ij b_jk of o_ik gets the fraction a_ij b_jk / stab(2 o_ik) of R_ik, for a and again for b."""
    portion = relevance / stab(2 * (a @ b), epsilon)
    return a * (portion @ b.mT), b * (a.mT @ portion)


def softmax_rule(x: Tensor, relevance: Tensor, dim: int) -> Tensor:
    """Gradient times input: R_i = x_i (R_i - s_i sum_j R_j)."""
    s = x.softmax(dim)
    return x * (relevance - s * relevance.sum(dim, keepdim=True))


def attention_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    relevance: Tensor,
    epsilon: float,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Relevance of q, k, v and of the softmax output [..., queries, keys]. The logits' split is not stabilised."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    attention = ((q @ k.mT) * factor + (0 if bias is None else bias)).softmax(-1)
    at_attention, at_v = matmul_rule(attention, v, relevance, epsilon)
    carry = at_attention - attention * at_attention.sum(-1, keepdim=True)  # relevance over activation, at the logits
    portion = carry / 2 * factor
    return q * (portion @ k), k * (portion.mT @ q), at_v, at_attention


def frozen_norm(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The normalisation as an affine map: its standard deviation (or root mean square) is the number it is at `x`."""
    if isinstance(module, nn.LayerNorm):
        dims = tuple(range(-len(module.normalized_shape), 0))
        sigma = (x.var(dims, correction=0, keepdim=True) + module.eps).sqrt()

        def function(t: Tensor) -> Tensor:
            y = (t - t.mean(dims, keepdim=True)) / sigma
            if module.weight is not None:
                y = y * module.weight
            return y if module.bias is None else y + module.bias

    elif isinstance(module, nn.GroupNorm):
        grouped = x.unflatten(1, (module.num_groups, -1))
        dims = tuple(range(2, grouped.dim()))
        sigma = (grouped.var(dims, correction=0, keepdim=True) + module.eps).sqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)

        def function(t: Tensor) -> Tensor:
            g = t.unflatten(1, (module.num_groups, -1))
            y = ((g - g.mean(dims, keepdim=True)) / sigma).flatten(1, 2)
            return y * module.weight.view(shape) + module.bias.view(shape)

    else:
        dims = tuple(range(-len(module.normalized_shape), 0))
        eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
        root = (x.square().mean(dims, keepdim=True) + eps).sqrt()

        def function(t: Tensor) -> Tensor:
            return t / root * module.weight

    return function


@dataclass
class Relevance:
    """What `Definition` found: relevance by module, of every softmax output, of the input, and what vanished where."""

    logits: Tensor
    at: dict[str, Tensor] = field(default_factory=dict)
    attention: list[Tensor] = field(default_factory=list)
    input: Tensor | None = None
    absorbed: dict[str, Tensor] = field(default_factory=dict)


class Definition:
    """Relevance of every tensor of `model`, which is in evaluation mode and can be traced by torch.fx.

    `affine` is the rule of the convolution or linear layer of a name; see `epsilon_rule` for the rest of what it takes.
    """

    def __init__(self, model: nn.Module, epsilon: float = 1e-6, affine: Callable | None = None) -> None:
        self.affine = affine or (lambda name, *arguments: epsilon_rule(*arguments))
        self.graph = fx.symbolic_trace(copy.deepcopy(model))
        for module in self.graph.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        self.modules = dict(self.graph.named_modules())
        self.epsilon = epsilon

    def kind(self, node: fx.Node):
        return type(self.modules[node.target]) if node.op == "call_module" else node.target

    def call(self, node: fx.Node) -> Callable:
        if node.op == "call_module":
            return self.modules[node.target]
        if node.op == "call_method":  # never in place: every value is looked at again on the way back
            return lambda x, *args, **kwargs: getattr(x, node.target.removesuffix("_"))(*args, **kwargs)
        return node.target

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor, initial: str = "one") -> Relevance:
        nodes = list(self.graph.graph.nodes)
        value, live = self.forward(nodes, images)
        output = next(n for n in nodes if n.op == "output").args[0]
        start = torch.zeros_like(value[output])
        chosen = value[output].gather(1, targets[:, None])
        usual = value[output].square().mean(1, keepdim=True).sqrt()
        kinds = {"one": torch.ones_like(chosen), "logit": chosen, "bounded": (chosen.abs() / usual).clamp(max=1)}
        start.scatter_(1, targets[:, None], kinds[initial])
        result = Relevance(value[output])
        relevance: dict[fx.Node, Tensor | list] = {output: start}
        owner = self.norm_owner(nodes)
        for node in reversed(nodes):
            if node not in relevance or node.op == "output":
                continue
            here = relevance[node]
            if node.op == "call_module":
                result.at[node.target] = here
            if node.op == "placeholder":
                result.input = here
                continue
            if self.kind(node) in SOFTMAX:
                result.attention.append(here)
            given = self.share_out(node, here, value, live, owner, result)
            if isinstance(here, Tensor):
                kept = sum(g.flatten(1).sum(1) for n, g in given if n in live and isinstance(g, Tensor))
                result.absorbed[node.name] = here.flatten(1).sum(1) - kept
            for source, part in given:
                if source not in live:
                    continue
                if isinstance(value[source], (tuple, list)):
                    parts = relevance.setdefault(source, [torch.zeros_like(v) for v in value[source]])
                    parts[part[0]] = parts[part[0]] + part[1]
                else:
                    relevance[source] = relevance[source] + part if source in relevance else part
        result.attention.reverse()
        return result

    def forward(self, nodes: list[fx.Node], images: Tensor) -> tuple[dict, set]:
        value, live = {}, set()
        for node in nodes:
            if node.op == "placeholder":
                value[node] = images
                live.add(node)
            elif node.op == "get_attr":
                value[node] = operator.attrgetter(node.target)(self.graph)
            elif node.op != "output":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value[n])
                value[node] = self.call(node)(*args, **kwargs)
                carries = any(n in live for n in node.all_input_nodes)
                if carries and self.kind(node) not in STATISTIC and self.kind(node) not in (getattr, "size"):
                    live.add(node)
        return value, live

    def norm_owner(self, nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        """Batch norm node -> the convolution or linear layer that it belongs to."""
        owner = {}
        for node in nodes:
            if node.op == "call_module" and self.kind(node) in BATCH_NORM:
                before = node.args[0]
                if before.op == "call_module" and self.kind(before) in AFFINE and len(before.users) == 1:
                    owner[node] = before
        return owner

    def share_out(self, node, here, value, live, owner, result) -> list[tuple[fx.Node, Tensor]]:
        kind, eps, source = self.kind(node), self.epsilon, node.args[0]
        call = self.call(node)
        get = lambda n: value[n] if isinstance(n, fx.Node) else n  # noqa: E731
        resolve = lambda a: fx.node.map_arg(a, lambda n: value[n])  # noqa: E731
        rest, kwargs = resolve(node.args[1:]), resolve(node.kwargs)

        if node in owner:
            return [(owner[node], here)]
        if kind in AFFINE:
            norm = next((n for n, o in owner.items() if o is node), None)
            whole = (lambda x: self.call(norm)(call(x))) if norm is not None else call
            return [(source, self.affine(node.target, whole, value[source], here, eps))]
        if kind in BATCH_NORM or kind in AVERAGE:
            return [(source, epsilon_rule(lambda x: call(x, *rest, **kwargs), value[source], here, eps))]
        if kind in (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm):
            x = value[source]
            return [(source, epsilon_rule(frozen_norm(self.modules[node.target], x), x, here, eps))]
        if kind in PASS:
            return [(source, here)]
        if kind in GATE:
            x = value[source]
            return [(source, x * pull_back(lambda t: call(t, *rest, **kwargs), [x], share(here, value[node]))[0])]
        if kind in SOFTMAX:
            x = value[source]
            dim = (
                self.modules[node.target].dim
                if node.op == "call_module"
                else kwargs.get("dim", rest[0] if rest else None)
            )
            return [(source, softmax_rule(x, here, dim))]
        if kind in MAX_POOL:
            return [(source, pull_back(lambda x: call(x, *rest, **kwargs), [value[source]], here)[0])]
        if kind in ADD or kind in SUBTRACT:
            portion = here / stab(value[node], eps)
            signs = (1, (-1 if kind in SUBTRACT else 1) * kwargs.get("alpha", 1))
            return [
                (n, sign * value[n] * portion.sum_to_size(value[n].shape))
                for n, sign in zip(node.args, signs, strict=True)
                if n in live
            ]
        if kind in MULTIPLY or kind in DIVIDE:
            carriers = [n for n in node.args if n in live]
            assert kind in MULTIPLY or carriers == [source], "division by data has no rule"
            return [(n, (here / len(carriers)).sum_to_size(value[n].shape)) for n in carriers]
        if kind in MATMUL:
            a, b = node.args
            assert a in live and b in live, "write a product with a constant matrix as a linear layer"
            return list(zip(node.args, matmul_rule(value[a], value[b], here, eps), strict=True))
        if kind is ATTENTION:
            q, k, v = (get(a) for a in node.args)
            scale, bias = kwargs.get("scale"), kwargs.get("attn_mask")
            at_q, at_k, at_v, at_softmax = attention_rule(q, k, v, here, eps, scale, bias)
            result.attention.append(at_softmax)
            return list(zip(node.args, (at_q, at_k, at_v), strict=True))
        if kind in STRUCTURE:
            return self.share_structure(node, here, value, live)
        if kind in IRRELEVANT:
            return []
        raise NotImplementedError(f"no definition for {node.format_node()}")

    def share_structure(self, node, here, value, live) -> list[tuple[fx.Node, Tensor]]:
        """Every output entry is one input entry (or a constant 0): its relevance goes where it came from."""
        first = node.args[0]
        if self.kind(node) is operator.getitem and isinstance(value[first], (tuple, list)):
            return [(first, (node.args[1], here))]
        sources = [n for n in dict.fromkeys(node.all_input_nodes) if n in live]

        def function(*tensors: Tensor):
            known = dict(zip(sources, tensors, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known.get(n, value[n]))
            return self.call(node)(*args, **kwargs)

        return list(zip(sources, pull_back(function, [value[n] for n in sources], here), strict=True))

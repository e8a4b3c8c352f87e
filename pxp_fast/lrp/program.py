"""A captured classifier compiled for relevance: one forward pass, one backward sweep, unit sums left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Set

import torch
from torch import Tensor, fx

from ..errors import DataError
from .assignment import rules_of_layers, rules_of_others
from .attention import Attention, HeadOutput
from .batches import check_batch
from .composites import Composite, composite
from .dispatch import Scope, operator_for, receivers
from .fused import FusedLinear, Policy, reproducible
from .graph import Captured
from .onednn import serves
from .prepare import last_uses, ordinary, prepare
from .relevance import spread
from .rules import Operator, Run
from .signs import nonnegative
from .softmax import attention_softmaxes
from .splitting import shares_of

INITIAL = ("one", "logit", "bounded")
"""What the relevance at the target's logit can be: see :meth:`Program.run`."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Where the relevance of a unit layer goes in the table.

    Attributes
    ----------
    offset, count
        The layer's columns.
    batch_dim
        The dimension of the layer's output that holds the samples.
    scale
        Factor on the sums (1/2 for attention heads: see `attention.HeadOutput.split`), but for heads whose values get
        all of the relevance.
    """

    offset: int
    count: int
    batch_dim: int = 0
    scale: float = 1.0


class Program:
    """Relevance of the units of a captured classifier.

    Nothing is propagated below the earliest layer that is read, tokens that the head does not read are not computed,
    weights are folded, cast and laid out once, and every value is dropped after its last use.

    Parameters
    ----------
    captured
        From :func:`pxp_fast.lrp.capture`. The program takes it over and rewrites it; the model stays as it is.
    readers
        Layers (convolution, linear, or the operator that yields an attention's output) whose unit sums are wanted.
    rules
        Composite, or the name of a preset, or as :func:`pxp_fast.lrp.composites.composite` takes it.
    dtype, device
        Of the computation; default: those of the model. bfloat16 keeps sums in float32.
    input_relevance
        Propagate down to the images as well.
    exact
        In float32, take the slower of two ways to the same numbers, which rounds as autograd on the model itself does:
        contiguous convolutions, ATen's matrix products, no TF32 on a GPU. Otherwise convolutions are channels-last and,
        on a CPU, all products oneDNN's, which add up in longer runs (rounding errors are two to six times larger); on a
        GPU PyTorch's own switches decide about TF32. Reduced precision always takes the quicker way, float64 never.
    fused
        Whether each layer's product going back and the pass of the layer below are one kernel; None: where that is
        quicker (see :mod:`pxp_fast.lrp.fused`), which on a CPU it is not.

    Attributes
    ----------
    fallbacks
        Operators without a rule of their own, which got their ordinary gradient, and how often each occurs.
    """

    def __init__(
        self,
        captured: Captured,
        readers: Mapping[fx.Node, Reader],
        rules: str | Composite = "epsilon",
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        input_relevance: bool = False,
        exact: bool = False,
        fused: bool | None = None,
    ) -> None:
        self.composite = composite(rules)
        self.captured = captured
        self.units = max((reader.offset + reader.count for reader in readers.values()), default=0)
        self.input_relevance = input_relevance
        given = [t for t in captured.constants.values() if isinstance(t, Tensor) and t.is_floating_point()]
        self.dtype = dtype or given[0].dtype
        self.device = torch.device(device) if device is not None else given[0].device
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.layer_rules, layers = rules_of_layers(captured, self.composite)
        self.constants, self.layout, quick = prepare(captured, self.dtype, self.device, exact=exact)
        softmaxes = attention_softmaxes(captured, self._reached_from({captured.images}, set(readers), frozenset()))
        held = softmaxes if self.composite.softmax == "cp" else frozenset()
        self.live = self._reached_from({captured.images} if input_relevance else set(), set(readers), held)
        carrying = self._reached_from({captured.images}, set(readers), held)
        onednn = quick and serves(self.device, self.dtype)
        self.exact = exact
        policy = Policy(self.device, self.dtype, exact, fused)
        nodes = list(captured.nodes())
        self.layer_rules |= rules_of_others(captured, self.composite, layers)
        scope = Scope(
            self.live, carrying, self.constants, self.composite.stabilizer, policy, onednn, not quick,
            rules=self.layer_rules,
            softmax=self.composite.softmax,
            softmaxes=softmaxes,
            nonnegative=nonnegative(nodes, self.constants),
            spread=spread(nodes, self.layer_rules, self.live),
        )  # fmt: skip
        self.steps = self._compile(readers, scope)
        self.factors = self._factors()
        self.fallbacks = dict(scope.fallbacks)
        reads_and_makes = [(step.node.all_input_nodes, step.output) for step in self.steps]
        self.release = last_uses(reads_and_makes, {captured.logits, *captured.constants})
        if self.fallbacks:
            listed = ", ".join(f"{name} ({count})" for name, count in sorted(self.fallbacks.items()))
            warnings.warn(f"no relevance rule, ordinary gradient used for: {listed}", stacklevel=3)

    def _reached_from(self, start: set[fx.Node], read: set[fx.Node], held: Set[fx.Node]) -> set[fx.Node]:
        """The nodes that relevance must reach on its way to the unit layers and the starting nodes."""
        reached = set(start)
        for node in self.captured.nodes():
            if node in read or any(n in reached for n in receivers(node, held)):
                reached.add(node)
        return reached

    def _compile(self, readers: Mapping[fx.Node, Reader], scope: Scope) -> list[Operator]:
        steps, fused = [], set()
        for node in self.captured.nodes():
            if node not in fused:
                step = operator_for(node, scope)
                step.reader = readers.get(node)
                fused.add(step.output)
                steps.append(step)
        for step in steps:
            step.adopt(self.constants)
        self._fold_splits({step.node: step for step in steps})
        views = {view for step in steps if isinstance(step, HeadOutput) for view in step.views}
        for step in steps:
            step.bypassed = step.node in views
        return steps

    def _fold_splits(self, steps: dict[fx.Node, Operator]) -> None:
        """Let the layers that make queries, keys and values split attention's carry, where only attention reads it."""
        for node, step in steps.items():
            split = isinstance(step, Attention) and all(step.shares)
            shares = shares_of(self.captured, node, step.shares) if split else None
            layers = [steps.get(layer) for layer in shares or ()]
            if layers and all(isinstance(s, FusedLinear) and s.reader is None for s in layers):
                step.shares = (1, 1, 1)
                for layer in layers:
                    layer.share(shares[layer.node], self.constants[layer.node.args[1]])

    def _factors(self) -> Tensor | None:
        """The readers' scales as a row of the table; None where all are 1."""
        scales = {}
        for step in self.steps:
            if step.reader is not None:
                whole = isinstance(step, HeadOutput) and step.parts == 1
                scales[step.reader] = 1.0 if whole else step.reader.scale
        if all(scale == 1 for scale in scales.values()):
            return None
        factors = torch.ones(self.units, dtype=self.wide, device=self.device)
        for reader, scale in scales.items():
            factors[reader.offset : reader.offset + reader.count] = scale
        return factors

    def run(
        self,
        images: Tensor,
        targets: Tensor,
        initial: str = "one",
        observe: Callable[[fx.Node, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Unit relevance of a batch.

        Parameters
        ----------
        images
            ``[N, C, H, W]``, any N.
        targets
            ``[N]``, int64: the class whose logit is explained.
        initial
            Relevance that enters at the target's logit ``z``, one of :data:`INITIAL`: ``"one"``; ``"logit"``, which is
            ``z`` itself; or ``"bounded"``, ``|z| / max(|z|, root mean square of the image's logits)``, which is one but
            for images whose target hardly shows: with ``"one"`` these outweigh hundreds of others, as their relevance
            at the units is about ``1 / z``.
        observe
            Called as ``observe(node, value, carry)`` for every operator that relevance passes; its relevance is
            ``value * carry``. Keeps all values alive, for inspection and tests.

        Returns
        -------
        Tensor
            ``[2, N, U]`` in float32 (float64 for float64): each unit's signed relevance summed over positions, tokens
            or queries, and the sum of its absolute values.
        """
        self.check(images, targets, initial)
        return self.compute(images, targets, initial, observe)

    def compute(self, images: Tensor, targets: Tensor, initial: str = "one", observe: Callable | None = None) -> Tensor:
        """:meth:`run` without its checks: nothing here waits for the device or depends on a value on it."""
        state = torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False)
        with contextlib.ExitStack() as stack:
            for context in (*state, reproducible(self.device, self.exact)):
                stack.enter_context(context)
            return self._compute(images, targets, initial, observe)

    def _compute(self, images: Tensor, targets: Tensor, initial: str, observe: Callable | None) -> Tensor:
        images = ordinary(images).to(self.device, self.dtype).contiguous(memory_format=self.layout)
        table = torch.zeros(2, len(images), self.units, dtype=self.wide, device=self.device)
        if len(images) == 0:
            return table
        run = Run(self.live, {**self.constants, self.captured.images: images}, table, spent=observe is None)
        saved, values = {}, {}
        for step, dead in zip(self.steps, self.release, strict=True):
            run.env[step.output], kept = step.forward(run)
            if step.output in self.live:
                saved[step] = kept
            if observe is not None:
                values[step.output] = run.env[step.output]
            for node in dead:
                del run.env[node]
        logits = run.env.pop(self.captured.logits)
        run.give(self.captured.logits, self._seed(logits, targets.to(self.device), initial))
        for step in reversed(self.steps):
            carry = run.carries.pop(step.takes, None)
            if carry is None:
                continue
            if observe is not None and not isinstance(carry, dict):
                carry = carry.held()
                observe(step.takes, values[step.takes], carry.tensor())
            step.backward(run, carry, saved.pop(step))
        if observe is not None and self.input_relevance:
            carry = run.carries.get(self.captured.images)
            observe(self.captured.images, images, carry.tensor() if carry else torch.zeros_like(images))
        return table if self.factors is None else table.mul_(self.factors)

    def _seed(self, logits: Tensor, targets: Tensor, initial: str) -> Tensor:
        """The carry of the logits: that of the initial relevance at the target, 0 elsewhere."""
        chosen = targets.unsqueeze(1)
        at = logits.gather(1, chosen)
        if initial == "logit":
            carry = torch.ones_like(at)
        else:
            usual = logits.to(self.wide).square().mean(1, keepdim=True).sqrt().to(at.dtype)
            size = at.abs().maximum(usual) if initial == "bounded" else at.abs()
            # A logit of exactly 0 has no relevance to give: its carry would be infinite.
            carry = torch.where(at == 0, 0, at.sign() / size)
        return torch.zeros_like(logits).scatter_(1, chosen, carry)

    def check(self, images: Tensor, targets: Tensor, initial: str = "one") -> None:
        """Raise DataError unless :meth:`compute` can take this batch. Labels are looked at only on the CPU."""
        check_batch(self.captured, images, targets)
        if initial not in INITIAL:
            raise DataError(f"initial relevance {initial!r} is not known; use one of {', '.join(INITIAL)}")

"""The user's model as one flat graph of ATen operators.

`torch.export` traces the model once, for any batch size, without touching it. What comes out is cleaned of what says
nothing about the function computed (dropout that is switched off, in-place spelling), and everything that does not
depend on the images (parameters, position tables, attention masks) is evaluated once and kept as a constant.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from ..errors import CaptureError, ModelError
from .graph import ATEN, Captured, argument, is_view, module_of

DROPOUTS = {
    ATEN.dropout.default,
    ATEN.alpha_dropout.default,
    ATEN.feature_dropout.default,
    ATEN.feature_alpha_dropout.default,
}
IDENTITIES = DROPOUTS | {ATEN.alias.default, ATEN.detach.default}
MADE_FROM_TYPE = {"new_zeros", "new_ones", "new_full", "new_tensor"}


def capture(model: nn.Module, example: Tensor) -> Captured:
    """Capture a classifier as a graph that works for any batch size.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``. It is read, never changed: parameters, buffers, hooks
        and every module's training flag are afterwards what they were. Capture sees it in eval mode.
    example
        One batch ``[N, C, H, W]`` that the model accepts; only its shape and dtype matter.

    Raises
    ------
    CaptureError
        The model's control flow depends on the data, its output is no ``[N, classes]`` tensor, or it draws random
        numbers in eval mode.
    ModelError
        A parameter or buffer is not finite.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise CaptureError(f"{type(model).__name__} spreads a model over devices; pass the model inside, model.module")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise CaptureError("a compiled model cannot be captured; pass the model that was given to torch.compile")
    _refuse_non_finite(model)
    device = next((p.device for p in model.parameters()), example.device)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), example.dtype)
    example = torch.zeros((2, *example.shape[1:]), dtype=dtype, device=device)
    # Tensors made in inference mode could not be differentiated later, and autocast would be traced into the graph.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        program = _export(model, example)
        captured = _flatten(program, type(model).__name__)
        _refuse_random(captured)
        _evaluate_constants(captured)
        _remove_in_place(captured)
        _remove_identities(captured)
        captured.eliminate_dead()
        _check_against(model, captured, example)
    return captured


def _refuse_non_finite(model: nn.Module) -> None:
    """Buffers may hold infinities (attention masks do), parameters may not, and nothing may be NaN."""
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            bad = ~torch.isfinite(tensor) if kind == "parameter" else torch.isnan(tensor)
            if bool(bad.any()):
                raise ModelError(f"{kind} {name} holds {int(bad.sum())} NaN or infinite values; load intact weights")


def _check_against(model: nn.Module, captured: Captured, example: Tensor) -> None:
    """Refuse a graph that does not compute what the model does, whatever tracing may have missed."""
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with evaluating(model), torch.no_grad(), torch.random.fork_rng([example.device] if example.is_cuda else []):
        outputs = torch.func.functional_call(model, buffers, (images.clone(),))
        found = captured.forward(images)
    flat = torch.utils._pytree.tree_leaves(outputs)
    same = [o for o in flat if isinstance(o, Tensor) and o.shape == found.shape]
    tolerance = 10 * torch.finfo(found.dtype).eps ** 0.5
    scales = [1 + float(o.nan_to_num(0, 0, 0).abs().max()) for o in same]  # overflow is told of later, by layer
    if not any(
        torch.isclose(found, o, rtol=0, atol=tolerance * scale, equal_nan=True).all()
        for o, scale in zip(same, scales, strict=True)
    ):
        raise CaptureError(
            f"the graph captured of {type(model).__name__} computes something else than the model: it draws random "
            "numbers, or writes in place into a tensor that is also read through a view; make forward() a fixed "
            "function that writes its results to new tensors"
        )


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2)
    try:
        with evaluating(model), torch.no_grad(), _quiet():
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(
            f"{type(model).__name__} cannot be captured as a graph for inputs of shape "
            f"[N, {', '.join(map(str, example.shape[1:]))}]: {reason[0]}. Check that the model runs on such inputs, "
            "and move control flow that depends on tensor values out of forward()"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch.export prints of a model that it cannot trace to itself: the error says it."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode for a block, then give each module its own training flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _flatten(program: torch.export.ExportedProgram, name: str) -> Captured:
    graph = program.graph_module.graph
    _inline_contexts(program.graph_module)
    signature = program.graph_signature
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    constants, parameters, buffers, images = {}, {}, {}, []
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in owners:
            (parameters if node.name in signature.inputs_to_parameters else buffers)[node] = owners[node.name]
            held = program.state_dict.get(owners[node.name], program.constants.get(owners[node.name]))
            constants[node] = held  # as it is: ATen's choice of a matrix product asks whether weights need gradients
        elif node.name in lifted:
            constants[node] = program.constants[lifted[node.name]]
        else:
            images.append(node)
    if len(images) != 1:
        raise CaptureError(f"{name} takes {len(images)} tensors; a classifier of images takes one")
    (outputs,) = graph.output_node().args
    logits = [n for n in outputs if isinstance(n, fx.Node) and _is_logits(n, images[0])]
    if not logits:
        found = [tuple(n.meta["val"].shape) for n in outputs if isinstance(n, fx.Node) and "val" in n.meta]
        raise CaptureError(f"{name} returns {found}, not logits [N, classes]; wrap it so that forward() returns those")
    if len(logits) > 1:
        widths = ", ".join(str(int(n.meta["val"].shape[1])) for n in logits)
        raise CaptureError(f"{name} returns {len(logits)} tensors [N, C], C = {widths}; wrap it to return the logits")
    return Captured(graph, constants, parameters, images[0], logits[0], buffers)


def _inline_contexts(module: fx.GraphModule) -> None:
    """Replace what ``with torch.autocast(...)`` or ``torch.no_grad()`` inside a forward() wraps by its contents."""
    graph = module.graph
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        inner = next((a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"), None)
        if inner is None or not str(node.target).startswith("wrap_with_"):
            raise CaptureError(f"{module_of(node)} uses {node.target}, whose relevance is not defined; write it out")
        body = getattr(module, inner.target)
        _inline_contexts(body)
        operands = node.args[node.args.index(inner) + 1 :]
        values = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(body.graph, values)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _is_logits(node: fx.Node, images: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.dim() == 2
        and value.is_floating_point()
        and value.shape[0] == images.meta["val"].shape[0]
    )


def _refuse_random(captured: Captured) -> None:
    for node in captured.graph.nodes:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node.target in IDENTITIES or functional_variant(node.target) in IDENTITIES:  # looked at later
            continue
        if argument(node, "dropout_p") != 0:  # attention that drops nothing is as good as fixed
            raise CaptureError(f"{module_of(node)} draws random numbers in eval mode ({node.target})")


def _evaluate_constants(captured: Captured) -> None:
    """Run, in order and as written, every operator that the images do not reach."""
    constants = captured.constants
    for node in captured.graph.nodes:  # what the model writes into stays the model's
        if node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            base = node.args[0]
            while is_view(base):
                base = base.args[0]
            if base in constants:
                constants[base] = constants[base].clone()
    with torch.no_grad():
        for node in captured.graph.nodes:
            if node.op != "call_function":
                continue
            read: Mapping[fx.Node, Tensor] = constants
            if str(node.target).removeprefix("aten.").split(".")[0] in MADE_FROM_TYPE:
                # Only the dtype and device of the first argument matter, so the images do not reach the result.
                like = node.args[0].meta["val"]
                read = {**constants, node.args[0]: torch.empty(0, dtype=like.dtype, device=like.device)}
            if not all(n in read for n in node.all_input_nodes):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), read.__getitem__)
            constants[node] = node.target(*args, **kwargs)


def _remove_in_place(captured: Captured) -> None:
    """Spell ``relu_`` as ``relu``: the trace already lets later readers see the written value.

    A write into a view changes its base behind the graph's back; for tensors that depend on the images that would
    make relevance wrong, so it is refused.
    """
    for node in captured.nodes():
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            functional = functional_variant(node.target)
            base = node.args[0]
            while is_view(base) and base not in captured.constants:
                base = base.args[0]
                if functional is None or len(base.users) > 1:
                    raise CaptureError(f"{module_of(node)} writes in place into a view ({node.target}); write it out")
            if functional is None:
                raise CaptureError(f"{module_of(node)} uses {node.target}, which changes a tensor in place")
            node.target = functional


def functional_variant(target: torch._ops.OpOverload) -> Callable | None:
    """The operator that returns what an in-place operator writes, or None if ATen has none."""
    name = target._schema.name.split("::")[1].removesuffix("_")
    packet = getattr(getattr(torch.ops, target.namespace), name, None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _remove_identities(captured: Captured) -> None:
    for node in list(captured.nodes()):
        if node.target in IDENTITIES:
            if node.target in DROPOUTS and argument(node, "p") and argument(node, "train"):
                raise CaptureError(f"{module_of(node)} applies dropout in eval mode; relevance needs a fixed function")
            node.replace_all_uses_with(node.args[0])
            if node is captured.logits:
                captured.logits = node.args[0]
            captured.graph.erase_node(node)

"""Tasks: a classifier restricted to some of its classes, for pruning what those do not need."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from .errors import ModelError, PxpError
from .finding import classifiers
from .lrp import capture
from .lrp.capture import evaluating
from .lrp.graph import Captured, argument, module_of, packet

if TYPE_CHECKING:
    from .data import Images

MODES = ("slice", "zero")


@dataclasses.dataclass(frozen=True)
class Task:
    """Some classes of a classifier.

    Attributes
    ----------
    classes
        Labels of the whole classifier, each once; the sliced classifier's labels are their positions here.
    mode
        What :meth:`restrict` does: ``"slice"`` removes the other classes from the classifier, or ``"zero"`` sets their
        logits to 0, as PXP's code does (Hatefi et al., 2024). An image whose kept logits are all negative then counts
        as wrong, whichever of them is the largest.

    Raises
    ------
    PxpError
        No classes, one twice, something else than whole numbers >= 0, or an unknown mode.
    """

    classes: tuple[int, ...]
    mode: str = "slice"

    def __post_init__(self) -> None:
        try:
            classes = tuple(operator.index(label) for label in self.classes)
        except TypeError as error:
            raise PxpError(f"classes of a task are {self.classes!r}; pass whole numbers, such as (0, 3)") from error
        if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
            raise PxpError(f"classes of a task are {list(classes)}; pass one or more labels >= 0, each once")
        if self.mode not in MODES:
            raise PxpError(f"mode of a task is {self.mode!r}; choose one of {', '.join(MODES)}")
        object.__setattr__(self, "classes", classes)

    def restrict(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model for this task alone, by :meth:`slice` or :meth:`zero` as `mode` says."""
        return self.slice(model, example) if self.mode == "slice" else self.zero(model, example)

    def slice(self, model: nn.Module, example: Tensor) -> nn.Module:
        """A copy of the model whose classifier has the rows of these classes only: logits ``[N, len(classes)]``.

        The copy is an ordinary module of the same type, and its units and parameters have the same names: scores and
        plans made with it fit the model itself. The classifier is found on the captured graph.

        Parameters
        ----------
        model
            Maps images ``[N, C, H, W]`` to logits; left as it is.
        example
            A batch that the model accepts; only its shape matters.

        Raises
        ------
        ModelError
            A class does not exist, or the classifier cannot be sliced; the message says what stands in the way.
        """

        return _restricted(model, example, self.classes, zero=False)

    def zero(self, model: nn.Module, example: Tensor) -> nn.Module:
        """A copy of the model in which the logits of all other classes are 0; as :meth:`slice` otherwise.

        Weights and biases of these classes are 0, so the relevance of the remaining ones is as in the whole model, but
        for ``initial="bounded"``, which weighs images by all logits.
        """

        return _restricted(model, example, self.classes, zero=True)

    def labels(self, labels: Tensor) -> Tensor:
        """The labels that the restricted model has for `labels` of the whole one, int64; -1 for other classes."""
        found = torch.full_like(labels, -1)
        for position, label in enumerate(self.classes):
            found[labels == label] = position if self.mode == "slice" else label
        return found

    def label(self, label: int) -> int:
        """The restricted model's label for a label of the whole model, which must be one of the task's."""
        return self.classes.index(label) if self.mode == "slice" else label

    def loader(self, loader: Iterable[tuple[Tensor, Tensor]]) -> TaskLoader:
        """The images of these classes among a loader's batches, with the restricted model's labels."""
        return TaskLoader(self, loader)

    def images(self, images: Images) -> Images:
        """The images of these classes, with the restricted model's labels."""

        def own(samples: list) -> list:
            kept = (sample for sample in samples if sample.label in self.classes)
            return [dataclasses.replace(sample, label=self.label(sample.label)) for sample in kept]

        names = {self.label(label): name for label, name in images.class_names.items() if label in self.classes}
        spares = {self.label(label): own(found) for label, found in images.spares.items() if label in self.classes}
        return dataclasses.replace(
            images, samples=own(images.samples), class_names=names, spares=spares, skipped=[], stand_ins=[]
        )

    def describe(self) -> dict:
        """A JSON-able description, for the record."""
        return {"classes": list(self.classes), "mode": self.mode}


class TaskLoader:
    """Batches of a task's images alone, with their labels in the task; see :meth:`Task.loader`.

    A batch is smaller by the images of other classes; one that has none left does not come.
    """

    def __init__(self, task: Task, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.task = task
        self.whole = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.whole:
            known = self.task.labels(labels)
            kept = known >= 0
            if bool(kept.any()):
                yield images[kept], known[kept]


def random_task(classes: int | Iterable[int], count: int, seed: int = 0, mode: str = "slice") -> Task:
    """A task of `count` classes drawn at random, in ascending order.

    Parameters
    ----------
    classes
        How many the model has, or the labels to draw from.
    seed
        The same seed draws the same classes.

    Raises
    ------
    PxpError
        There are fewer classes than that, or `count` is not positive.
    """
    labels = sorted(range(classes) if isinstance(classes, int) else set(classes))
    if not 0 < count <= len(labels):
        raise PxpError(f"a task of {count} classes is asked for; there are {len(labels)} to draw from")
    return Task(tuple(sorted(random.Random(f"task:{seed}").sample(labels, count))), mode)


def _restricted(model: nn.Module, example: Tensor, classes: tuple[int, ...], *, zero: bool) -> nn.Module:
    """A copy of the model that keeps the classifier's rows of some classes; the others become 0, or go."""
    name = type(model).__name__
    captured = capture(model, example)
    total = captured.num_classes
    if max(classes) >= total:
        raise ModelError(f"the task has class {max(classes)}, but {name} has {total} classes (0 ... {total - 1})")

    def keep(tensor: Tensor, dim: int) -> Tensor:
        index = torch.tensor(classes, device=tensor.device)
        kept = tensor.index_select(dim, index)
        return torch.zeros_like(tensor).index_copy_(dim, index, kept) if zero else kept

    paths = _classifier_parameters(captured, name)
    restricted = copy.deepcopy(model)
    with torch.inference_mode(False), torch.no_grad():
        for path in paths:
            where, _, own = path.rpartition(".")
            layer = restricted.get_submodule(where)
            whole = getattr(layer, own)
            setattr(layer, own, nn.Parameter(keep(whole, 0), whole.requires_grad))
    if not zero:
        layers = {restricted.get_submodule(path.rpartition(".")[0]) for path in paths}
        _say_width(restricted, layers, total, len(classes))
    _check(captured, restricted, name, functools.partial(keep, dim=1))
    return restricted


def _classifier_parameters(captured: Captured, name: str) -> list[str]:
    """The parameters ``[classes, ...]`` of the layers that make the logits; of several where these are averaged."""
    found: list[str] = []
    last = classifiers(captured)
    for node in (n for n in captured.nodes() if n in last):
        tensors = [node.args[1], argument(node, "bias")]
        for tensor in (t for t in tensors if isinstance(t, fx.Node)):
            if tensor not in captured.parameters:
                raise ModelError(
                    f"the classifier of {name} cannot be sliced: {module_of(node)} computes its weights; make them "
                    "parameters, for instance by torch.nn.utils.parametrize.remove_parametrizations"
                )
            if len(captured.constants[tensor]) != captured.num_classes:
                raise ModelError(
                    f"the classifier of {name} cannot be sliced: {captured.parameters[tensor]} is "
                    f"{list(captured.constants[tensor].shape)}, but there are {captured.num_classes} classes"
                )
            found.append(captured.parameters[tensor])
        if argument(node, "groups", 1) != 1:
            raise ModelError(f"the classifier of {name} cannot be sliced: {module_of(node)} is a grouped convolution")
    if not found:
        raise ModelError(
            f"the classifier of {name} cannot be sliced: its logits come from {packet(captured.logits)}, and no "
            "linear layer or convolution is found that makes them"
        )
    return list(dict.fromkeys(found))


def _say_width(model: nn.Module, layers: set[nn.Module], before: int, after: int) -> None:
    """Let the attributes that give the number of classes give the new one."""
    for module in model.modules():
        for attribute in ("num_classes", *(("out_features", "out_channels") if module in layers else ())):
            if type(getattr(module, attribute, None)) is int and getattr(module, attribute) == before:
                setattr(module, attribute, after)


def _check(captured: Captured, restricted: nn.Module, name: str, keep: Callable[[Tensor], Tensor]) -> None:
    """Refuse a copy whose logits are not those kept of the whole model's, whatever comes after the classifier."""
    like = captured.images.meta["val"]
    device = next(iter(captured.constants.values())).device
    images = torch.randn(2, *like.shape[1:], generator=torch.Generator().manual_seed(0)).to(device, like.dtype)
    logits = captured.forward(images)
    wanted = keep(logits)
    try:
        with evaluating(restricted), torch.no_grad():
            found = torch.utils._pytree.tree_leaves(restricted(images.clone()))
    except Exception as error:  # an operator may refuse the new shape in its own words
        raise ModelError(
            f"the classifier of {name} cannot be sliced: without the other classes the model fails "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    tolerance = torch.finfo(wanted.dtype).eps ** 0.5 * float(logits.abs().max())
    same = (o for o in found if isinstance(o, Tensor) and o.shape == wanted.shape)
    if not any(bool(torch.isclose(o, wanted, rtol=0, atol=tolerance).all()) for o in same):
        raise ModelError(
            f"the classifier of {name} cannot be sliced: what comes after it (a softmax?) mixes the classes, so the "
            "logits of some change when others go; pass a model that ends with the logits"
        )

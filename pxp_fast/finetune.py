"""Fine-tuning: a few epochs of training for a pruned network, by timm's optimisers and schedules, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError, NumericalError, PxpError
from .evaluate import evaluate
from .finetune_state import Epoch, State, Tensors, fingerprint
from .loader import unprepared
from .masks import apply_mask
from .plan import Plan
from .prefetch import closing, prefetch
from .progress import Track, silent

SCHEDULERS = ("cosine", "poly", "tanh", "step", "none")


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """What fine-tuning came to.

    Attributes
    ----------
    epochs
        One record of each; the first, of epoch 0, is the model as it was given.
    best
        The epoch whose weights the model has now: that of the highest accuracy, the first of these.
    """

    epochs: tuple[Epoch, ...]
    best: int

    @property
    def accuracy(self) -> float:
        """On the images held out, with the weights kept."""
        return self.epochs[self.best].accuracy


def finetune(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    validation: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int = 5,
    optimizer: str = "adamw",
    scheduler: str = "cosine",
    lr: float = 1e-4,
    weight_decay: float = 0.05,
    warmup_epochs: int = 0,
    label_smoothing: float = 0.1,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Track | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> FineTuned:
    """Train a model in place, and leave it with the weights that did best on images held out, its own among them.

    Parameters
    ----------
    model
        Slimmed, masked or whole; it is trained where it is, and put back into the mode it was in.
    loader
        Yields ``(images [N, C, H, W], labels [N])`` and has a length; passed over once per epoch. Where it has a method
        ``set_epoch``, as :class:`pxp_fast.loader.ShuffledLoader` and PyTorch's distributed samplers do, that is called.
    validation
        The same, of images that are not in `loader`.
    optimizer
        A name that ``timm.optim.create_optimizer_v2`` knows.
    scheduler
        ``"cosine"``, ``"poly"``, ``"tanh"``, ``"step"`` (timm's), stepped with every batch, or ``"none"``.
    lr, weight_decay, warmup_epochs, label_smoothing
        As they are usually understood. Biases and norms have no weight decay.
    dtype
        Of the arithmetic of the forward pass (bfloat16, float16 with scaled losses); weights stay as they are. None: on
        a GPU bfloat16, if it can, else as the model is.
    seed
        Of dropout and the like. Epoch by epoch they are the same, whether interrupted or not.
    plan
        The model is masked by it, and is kept so.
    state
        A file for the state after each epoch, optimiser included, replaced atomically. If it is there, fine-tuning goes
        on from it, on the same device bit for bit as if it had never stopped.

    Raises
    ------
    PxpError
        timm is missing, it does not know the optimiser or schedule, or `state` is of another fine-tuning or damaged.
    DataError
        There are no images, or the loader has no length.
    NumericalError
        The loss is not finite.
    """
    settings = {
        "epochs": epochs, "optimizer": optimizer, "scheduler": scheduler, "lr": lr, "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs, "label_smoothing": label_smoothing, "dtype": str(dtype), "seed": seed,
    }  # fmt: skip
    trainer = _Trainer(model, loader, settings, dtype, plan)
    own = settings | {"batches": trainer.batches, "start": fingerprint(model), "masked": plan is not None}
    path = None if state is None else Path(state)
    track = progress or silent
    if path is not None and path.exists():
        held = State.load(path, own)
        trainer.resume(held)
        say(f"going on after epoch {len(held.epochs) - 1} of {epochs}")
    else:
        accuracy = evaluate(model, validation, dtype=trainer.dtype).accuracy
        held = State(own, [Epoch(0, None, accuracy, 0.0)], 0, trainer.tensors(), _copied(model.state_dict()))
        say(f"epoch 0: accuracy {accuracy:.2%}")
    for epoch in range(len(held.epochs), epochs + 1):
        loss, rate = trainer.train(epoch, track)
        accuracy = evaluate(model, validation, dtype=trainer.dtype).accuracy
        say(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.2%}")
        held.epochs.append(Epoch(epoch, loss, accuracy, rate))
        if accuracy > held.epochs[held.best].accuracy:
            held.best, held.weights = epoch, _copied(model.state_dict())
        if path is not None:
            held.now = trainer.tensors()
            held.save(path)
    model.load_state_dict(held.weights)
    return FineTuned(tuple(held.epochs), held.best)


class _Trainer:
    """A model, its optimiser and its schedule."""

    def __init__(
        self, model: nn.Module, loader: Iterable, settings: dict[str, Any], dtype: torch.dtype | None, plan: Plan | None
    ) -> None:
        if not hasattr(loader, "__len__") or not len(loader):
            raise DataError("fine-tuning takes a loader with a length and a batch or more, such as a list")
        _check(settings)
        self.model, self.loader, self.plan = model, loader, plan
        self.settings = settings
        self.batches = len(loader)
        self.device = next(model.parameters()).device
        self.dtype = dtype
        if dtype is None and self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            self.dtype = torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        if plan is not None:
            apply_mask(model, plan)
        self.optimizer, self.scheduler = _timm(model, settings, self.batches)

    def train(self, epoch: int, track: Track) -> tuple[float, float]:
        """One epoch; its mean loss, and the learning rate at its end."""
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)
        raw, preparing = unprepared(self.loader)
        batches = prefetch(raw, self.device, prepare=preparing(self.device))
        precision = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        total, seen = torch.zeros((), dtype=torch.float64, device=self.device), 0
        with self._ready(epoch), closing(batches):
            for index, (images, labels) in enumerate(track(batches, f"epoch {epoch}", self.batches)):
                wanted = precision if images.is_floating_point() else None
                loss = self._step(images.to(self.device, wanted), labels.to(self.device))
                total, seen = total + loss.double() * len(labels), seen + len(labels)
                if self.scheduler is not None:
                    self.scheduler.step_update((epoch - 1) * self.batches + index + 1)
        if not seen:
            raise DataError("there are no images to fine-tune with; check the folder and the classes chosen")
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise NumericalError(f"the loss of epoch {epoch} is {mean}; a lower learning rate (lr) may help")
        return mean, float(self.optimizer.param_groups[0]["lr"])

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        casting = torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()
        with casting:
            logits = self.model(images)
            smoothing = self.settings["label_smoothing"]
            loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.plan is not None:
            apply_mask(self.model, self.plan)
        return loss.detach()

    @contextlib.contextmanager
    def _ready(self, epoch: int) -> Iterator[None]:
        """In training mode, with the epoch's own random numbers; afterwards both are as before."""
        flags = [(module, module.training) for module in self.model.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        cudnn = torch.backends.cudnn
        kernels = cudnn.benchmark, cudnn.deterministic
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.settings["seed"] * 1_000_003 + epoch)
            cudnn.benchmark, cudnn.deterministic = False, True
            self.model.train()
            try:
                yield
            finally:
                cudnn.benchmark, cudnn.deterministic = kernels
                for module, training in flags:
                    module.training = training

    def tensors(self) -> Tensors:
        """All that the next epoch depends on."""
        return Tensors(_copied(self.model.state_dict()), self.optimizer.state_dict(), self.scaler.state_dict())

    def resume(self, state: State) -> None:
        self.model.load_state_dict(state.now.model)
        self.optimizer.load_state_dict(state.now.optimizer)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.now.scaler)


def _check(settings: dict[str, Any]) -> None:
    for name, low in (("epochs", 1), ("warmup_epochs", 0), ("lr", 0), ("weight_decay", 0), ("seed", 0)):
        if not settings[name] >= low or (name == "lr" and not settings[name] > 0):
            raise PxpError(f"{name} is {settings[name]}; it must be {'above' if name == 'lr' else 'at least'} {low}")
    if not 0 <= settings["label_smoothing"] < 1:
        raise PxpError(f"label_smoothing is {settings['label_smoothing']}; it must be in [0, 1)")
    if settings["scheduler"] not in SCHEDULERS:
        raise PxpError(f"scheduler is {settings['scheduler']!r}; choose one of {', '.join(SCHEDULERS)}")
    if settings["warmup_epochs"] >= settings["epochs"]:
        raise PxpError(f"all {settings['epochs']} epochs are to warm up; leave at least one to train")


def _timm(model: nn.Module, settings: dict[str, Any], batches: int) -> tuple[torch.optim.Optimizer, Any]:
    try:
        from timm.optim import create_optimizer_v2, list_optimizers
        from timm.scheduler import create_scheduler_v2
    except ImportError as error:
        raise PxpError(f"fine-tuning needs timm ({error}); install it with: pip install 'pxp_fast[models]'") from error
    name = settings["optimizer"].lower()
    if name not in list_optimizers():
        raise PxpError(f"timm knows no optimizer {name!r}; choose one of adamw, adam, sgd, lamb, lion, nadamw ...")
    optimizer = create_optimizer_v2(model, opt=name, lr=settings["lr"], weight_decay=settings["weight_decay"])
    if settings["scheduler"] == "none":
        return optimizer, None
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=settings["scheduler"],
        num_epochs=settings["epochs"],
        decay_epochs=max(1, settings["epochs"] // 3),
        warmup_epochs=settings["warmup_epochs"],
        warmup_lr=settings["lr"] / 100,
        step_on_epochs=False,
        updates_per_epoch=batches,
    )
    scheduler.step_update(0)
    return optimizer, scheduler


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}

"""Train a network of the experiments on CIFAR-10: `python -m bench.experiments.train NETWORK ...`.

Writes NETWORK.safetensors (float16) and NETWORK.json (recipe, accuracy, hardware, versions) into the folder `--out`.
The accuracy is that of the file, on all 10,000 test images. The same seed, machine and number of threads give the same
file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.train_demo import augment, round_to_half
from pxp_fast import environment
from pxp_fast.errors import PxpError
from pxp_fast.files import atomic_write

from . import data
from .networks import NETWORKS

WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: AdamW, one cycle of the learning rate, flips and shifts, smoothed labels.

    `teacher` names a network, trained before, whose outputs are half of what this one learns to match; `patches` is how
    many of the ViT's 64 patches it sees, but for the last sixth of the epochs, when it sees all.
    """

    epochs: int
    learning_rate: float
    batch: int = 128
    shift: int = 4
    weight_decay: float = 0.05
    smoothing: float = 0.1
    teacher: str | None = None
    patches: int | None = None


RECIPES = {
    "vgg16_bn": Recipe(epochs=16, learning_rate=4e-3),
    "resnet20": Recipe(epochs=12, learning_rate=8e-3),
    "vit": Recipe(epochs=12, learning_rate=1.5e-3, shift=2, teacher="vgg16_bn", patches=32),
}


def load(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """A trained network, float32 in evaluation mode on the CPU.

    Raises
    ------
    PxpError
        It has not been trained.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise PxpError(f"there is no {path.name}; make it with `python -m bench.experiments.train {name}`")
    model = NETWORKS[name]()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return model.eval()


def train(name: str, recipe: Recipe, teacher: nn.Module | None, device: torch.device, seed: int) -> nn.Module:
    """Train one network; bfloat16 where autocast chooses it, weights in float32."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = data.arrays()["train_images"], data.arrays()["train_labels"]
    model = NETWORKS[name]().to(device, memory_format=torch.channels_last)
    teacher = None if teacher is None else teacher.to(device, memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps, pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        model.train()
        if recipe.patches is not None:
            model.patches = recipe.patches if epoch < recipe.epochs * 5 // 6 else 64
        started, total = time.process_time(), torch.zeros((), device=device)
        for index in torch.randperm(len(images), generator=generator)[: steps * recipe.batch].view(steps, -1):
            x = data.normalize(augment(images[index], recipe.shift, generator).to(device))
            loss = _loss(model, teacher, x, labels[index].to(device), recipe.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        seconds = time.process_time() - started
        print(f"{name} {epoch + 1}/{recipe.epochs}: loss {float(total) / steps:.4f}, {seconds:.0f} s", flush=True)
    return model.eval().to("cpu", memory_format=torch.contiguous_format)


def _loss(model: nn.Module, teacher: nn.Module | None, x: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    # The CPU's fused attention is three times slower going back in bfloat16 than the plain one.
    with torch.autocast(x.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model(x).float()
        with torch.no_grad():
            soft = None if teacher is None else teacher(x).float().softmax(1)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss if soft is None else 0.5 * loss + 0.5 * F.cross_entropy(logits, soft)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of images (bytes) that the model gets right, in float32."""
    batches = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(data.normalize(x)).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def main() -> None:
    """Parse the command line and train what it names, in the order that teachers need."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.train", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in [n for n in NETWORKS if n in options.networks or not options.networks]:
        given = asdict(RECIPES[name]) | ({"epochs": options.epochs} if options.epochs else {})
        recipe = Recipe(**given)
        started = time.process_time()
        teacher = load(recipe.teacher, options.out) if recipe.teacher else None
        model = train(name, recipe, teacher, device, options.seed)
        seconds = time.process_time() - started
        state = round_to_half(model)
        facts = {
            "network": name,
            "accuracy": accuracy(model, data.arrays()["test_images"], data.arrays()["test_labels"]),
            "data": "CIFAR-10: trained on 50,000 images; accuracy on all 10,000 test images, after float16 rounding",
            "parameters": sum(p.numel() for p in model.parameters()),
            "command": f"python -m bench.experiments.train {name} --epochs {recipe.epochs} --seed {options.seed} "
            f"--threads {options.threads}",
            "recipe": asdict(recipe),
            "processor_seconds": round(seconds),
            "environment": environment.describe(device),
        }
        path = options.out / f"{name}.safetensors"
        with atomic_write(path) as temporary:
            save_file(state, temporary)
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{path.name}: {path.stat().st_size:,} bytes, accuracy {facts['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()

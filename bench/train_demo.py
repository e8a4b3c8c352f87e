"""Train the demo's three networks on Fashion-MNIST and write what the demo carries: `python -m bench.train_demo`.

Writes NAME.safetensors (float16, with a JSON header) for each network and images.npz, a balanced subset of the images.
The header's accuracy is that of the file: measured on all 10,000 test images after rounding to float16.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pxp_fast.demo.data import network, normalize
from pxp_fast.demo.networks import NETWORKS
from pxp_fast.files import atomic_write

from . import assets

OUT = Path(__file__).resolve().parent.parent / "pxp_fast" / "demo"


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Images are flipped and shifted by up to `shift` pixels; `teacher` names a network, already trained, whose outputs
    are half of what this one learns to match.
    """

    epochs: int
    learning_rate: float
    batch: int = 128
    shift: int = 2
    weight_decay: float = 0.05
    teacher: str | None = None


RECIPES = {
    "vgg": Recipe(epochs=6, learning_rate=4e-3),
    "resnet": Recipe(epochs=6, learning_rate=4e-3),
    "vit": Recipe(epochs=10, learning_rate=2e-3, teacher="resnet"),
}


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes: two zero bytes, the type (8: uint8), the rank, big-endian sizes, the data."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of uint8: it starts with {raw[:4].hex()}")
    rank = raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", rank, 4))
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def read_split(root: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 1, 28, 28] and labels int64 [n] of Fashion-MNIST's `prefix`, "train" or "t10k"."""
    images = read_idx(root / f"{prefix}-images-idx3-ubyte.gz").unsqueeze(1)
    return images, read_idx(root / f"{prefix}-labels-idx1-ubyte.gz").long()


def augment(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Flip half of the images left to right and shift each by up to `shift` pixels both ways; black comes in."""
    n, side = len(images), images.shape[-1]
    flip = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    windows = F.pad(images, (shift,) * 4).unfold(2, side, 1).unfold(3, side, 1)
    dy, dx = torch.randint(2 * shift + 1, (2, n), generator=generator)
    return windows[torch.arange(n), :, dy, dx]


def train(name: str, images: Tensor, labels: Tensor, teacher: nn.Module | None, seed: int) -> nn.Module:
    """Train one network by its recipe; the same seed and machine give the same weights."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[name]().to(memory_format=torch.channels_last)
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
        started, total = time.perf_counter(), 0.0
        for index in torch.randperm(len(images), generator=generator)[: steps * recipe.batch].view(steps, -1):
            x = normalize(augment(images[index], recipe.shift, generator)).contiguous(memory_format=torch.channels_last)
            # The CPU's fused attention is three times slower going back in bfloat16 than the plain one.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                logits = model(x)
                if teacher is not None:
                    with torch.no_grad():
                        soft = teacher(x).float().softmax(1)
            loss = F.cross_entropy(logits.float(), labels[index])
            if teacher is not None:
                loss = 0.5 * loss + 0.5 * F.cross_entropy(logits.float(), soft)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        seconds = time.perf_counter() - started
        print(f"{name} epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images that the model gets right, in float32."""
    batches = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(normalize(x)).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def round_to_half(model: nn.Module) -> dict[str, Tensor]:
    """Round the model's floating-point state to float16, in place, and return that state as float16 tensors."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(f"float16 cannot hold {', '.join(bad)}; train with another seed or learning rate")
    model.load_state_dict(state)
    return state


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def choose(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices of `per_class` images of every class, the classes in turn, so that every prefix is balanced."""
    columns = []
    for label in range(10):
        members = (labels == label).nonzero().squeeze(1)
        columns.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.stack(columns, 1).flatten()


def write_images(path: Path, splits: dict[str, tuple[Tensor, Tensor, int]], seed: int) -> None:
    """Write a balanced subset of each split, with the index of every image in the full data set."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for split, (images, labels, per_class) in splits.items():
        index = choose(labels, per_class, generator)
        arrays[f"{split}_images"] = images[index, 0].numpy()
        arrays[f"{split}_labels"] = labels[index].to(torch.uint8).numpy()
        arrays[f"{split}_source"] = index.to(torch.int32).numpy()
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Parse the command line, train what it names, write the images."""
    parser = argparse.ArgumentParser(prog="python -m bench.train_demo", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"which to train, of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument(
        "--data", type=Path, help="folder of the idx files (default: `python -m bench.assets` finds it)"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(arguments.threads)
    if arguments.data is None:
        arguments.data = assets.path("fashion-mnist")

    images, labels = read_split(arguments.data, "train")
    test_images, test_labels = read_split(arguments.data, "t10k")
    splits = {"reference": (images, labels, 100), "test": (test_images, test_labels, 200)}
    write_images(arguments.out / "images.npz", splits, arguments.seed)
    for name in [n for n in NETWORKS if n in arguments.networks or not arguments.networks]:
        recipe = RECIPES[name]
        started = time.perf_counter()
        teacher = network(recipe.teacher, arguments.out) if recipe.teacher else None
        model = train(name, images, labels, teacher, arguments.seed)
        seconds = time.perf_counter() - started
        state = round_to_half(model)
        facts = {
            "network": name,
            "accuracy": accuracy(model, test_images, test_labels),
            "data": "Fashion-MNIST: 60,000 training images; accuracy on all 10,000 test images, after float16 rounding",
            "parameters": sum(p.numel() for p in model.parameters()),
            "command": f"python -m bench.train_demo {name} --seed {arguments.seed} --threads {arguments.threads}",
            "recipe": asdict(recipe),
            "hardware": f"{processor()}, {arguments.threads} thread(s)",
            "torch": torch.__version__,
            "seconds": round(seconds),
        }
        path = arguments.out / f"{name}.safetensors"
        with atomic_write(path) as temporary:
            save_file(state, temporary, metadata={"facts": json.dumps(facts)})
        print(f"{path.name}: {path.stat().st_size:,} bytes, {json.dumps(facts)}", flush=True)


if __name__ == "__main__":
    main()

"""What scoring is compared with, one contender per file; each is run in a process of its own (:mod:`bench.process`)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pxp_fast.environment import version

from ..networks import CONVOLUTIONAL, NETWORKS, TRANSFORMERS
from .interface import Peer

__all__ = ["CONTENDERS", "YARDSTICK", "Contender", "Peer", "build", "contenders", "versions", "yardstick_like"]


@dataclass(frozen=True)
class Contender:
    """Who runs: the class that does, its file, on which networks, in which dtype and layout.

    Attributes
    ----------
    layout
        Whether convolutional networks run channels-last; `yardstick_like` goes by it.
    cuda
        It takes CUDA.
    """

    file: str
    peer: str
    networks: tuple[str, ...] = NETWORKS
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    cuda: bool = False
    options: dict = field(default_factory=dict)


def _gradients() -> dict[str, Contender]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True):
            for graph in (False, True):
                name = "gradient" + " bfloat16" * (dtype == torch.bfloat16) + " channels-last" * last + " graph" * graph
                networks = CONVOLUTIONAL if last else NETWORKS
                options = {"channels_last": last, "graph": graph}
                found[name] = Contender("gradient", "Gradient", networks, dtype, last, graph, options)
    return found


# The yardstick comes first.
CONTENDERS = {
    **_gradients(),
    "pxp_fast": Contender("pxp", "PxpFast", channels_last=True),
    "pxp_fast exact": Contender("pxp", "PxpFast", options={"exact": True}),
    "pxp_fast bfloat16": Contender("pxp", "PxpFast", dtype=torch.bfloat16, channels_last=True),
    "pxp_fast graph": Contender("pxp", "PxpFastGraph", channels_last=True, cuda=True),
    "pxp_fast bfloat16 graph": Contender("pxp", "PxpFastGraph", dtype=torch.bfloat16, channels_last=True, cuda=True),
    "zennit": Contender("zennit", "Zennit", CONVOLUTIONAL),
    "hooks": Contender("hooks", "Hooks", CONVOLUTIONAL),
    "lxt": Contender("lxt", "Lxt", TRANSFORMERS),
    "lxt+epsilon": Contender("lxt", "Lxt", TRANSFORMERS, options={"epsilon": True}),
    "captum": Contender("captum", "Captum", ("vgg16",)),
    "torch_pruning": Contender("torch_pruning", "TorchPruning"),
    "compiled": Contender("compiled", "Compiled", CONVOLUTIONAL, channels_last=True),
    "compiled bfloat16": Contender("compiled", "Compiled", CONVOLUTIONAL, torch.bfloat16, True),
    "compiled graph": Contender("compiled", "Compiled", CONVOLUTIONAL, torch.float32, True, True, {"graph": True}),
    "compiled bfloat16 graph": Contender(
        "compiled", "Compiled", CONVOLUTIONAL, torch.bfloat16, True, True, {"graph": True}
    ),
}
YARDSTICK = "gradient"


def contenders(network: str, device: str) -> list[str]:
    """Who can run on a network and a device."""
    return [
        name
        for name, contender in CONTENDERS.items()
        if network in contender.networks and (device == "cuda" or not contender.cuda)
    ]


def yardstick_like(contender: str, network: str) -> str:
    """The yardstick in the contender's own dtype and layout."""
    chosen = CONTENDERS[contender]
    last = chosen.channels_last and network in CONVOLUTIONAL
    return YARDSTICK + " bfloat16" * (chosen.dtype == torch.bfloat16) + " channels-last" * last


def build(contender: str, model: nn.Module, images: Tensor) -> Peer:
    """Make a contender ready for batches like `images`."""
    chosen = CONTENDERS[contender]
    module = importlib.import_module(f".{chosen.file}", __name__)
    return getattr(module, chosen.peer)(model, images, chosen.dtype, **chosen.options)


def versions() -> dict[str, str]:
    """Of what is compared."""
    from pxp_fast.version import __version__

    names = ("torch", "torchvision", "timm", "zennit", "lxt", "captum", "torch-pruning", "transformers", "triton")
    return {"pxp_fast": __version__} | {name: version(name) or "not installed" for name in names}

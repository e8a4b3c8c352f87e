"""The embedded demo: Fashion-MNIST images and three small trained networks, no download needed."""

from .data import CLASSES, INPUT_SIZE, MEAN, STD, facts, images, network, normalize, source
from .networks import NETWORKS

__all__ = ["CLASSES", "INPUT_SIZE", "MEAN", "NETWORKS", "STD", "facts", "images", "network", "normalize", "source"]

"""What every contender looks like to the bench."""

from __future__ import annotations

from torch import Tensor


class Peer:
    """One way to score the units of a network, or a yardstick for it.

    A subclass is made as ``Subclass(model, images, dtype, **options)``: it may change `model` as it likes, and `images`
    ``[N, C, H, W]`` are an example of what comes. Making it is not timed; `run` is.
    """

    def prepare(self, images: Tensor) -> Tensor:
        """Images as this contender wants to be given them; not timed."""
        return images

    def run(self, images: Tensor, labels: Tensor) -> None:
        """Score one batch: images as `prepare` gave them, labels ``[N]`` int64."""
        raise NotImplementedError

    def unit_sums(self) -> dict[str, Tensor]:
        """What the last run found, not timed.

        Layer -> ``[N, units]`` signed relevance sums for those that compute relevance with 1 entering at the label;
        layer -> ``[units]`` for other criteria and for totals; empty for the yardstick.
        """
        return {}

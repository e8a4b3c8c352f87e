"""What is compared: networks with the kind of unit that is removed, and the orders in which units go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """A network and the one kind of its units that is removed, as the paper prunes neurons and heads apart."""

    network: str
    kind: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.network}_{self.kind}"


@dataclass(frozen=True)
class Method:
    """An order of removal.

    Attributes
    ----------
    name, title
        In the results, and on the page.
    criterion, composite
        As :func:`pxp_fast.score` takes them. The composite ``"tuned"`` stands for what the search with the same
        `initial` found for the subject, which decides `magnitude` too.
    magnitude
        Whether absolute relevance ranks; see :meth:`pxp_fast.Scores.values`.
    order
        Of :func:`pxp_fast.plan`.
    initial
        Relevance at the label's logit, as :func:`pxp_fast.score` takes it.
    networks
        The networks that it is for; empty: all.
    """

    name: str
    title: str
    criterion: str = "lrp"
    composite: str | None = None
    magnitude: bool = True
    order: str = "least"
    initial: str = "one"
    networks: tuple[str, ...] = ()

    @property
    def scored(self) -> bool:
        """Whether the order depends on scores."""
        return self.order != "random"

    @property
    def tuned(self) -> bool:
        """Whether its composite was searched for."""
        return self.composite == "tuned"

    @property
    def sees_images(self) -> bool:
        """Whether the order depends on the reference images."""
        return self.scored and self.criterion != "magnitude"


CNNS = ("vgg16_bn", "resnet20")
VITS = ("vit",)

SUBJECTS = (
    Subject("vgg16_bn", "filter", "VGG-16-BN, filters"),
    Subject("resnet20", "filter", "ResNet-20, filters"),
    Subject("vit", "neuron", "ViT, neurons"),
    Subject("vit", "head", "ViT, heads"),
)

METHODS = (
    Method("tuned", "LRP, optimised composite", composite="tuned"),
    Method(
        "tuned_bounded", "LRP, optimised composite, bounded initial relevance", composite="tuned", initial="bounded"
    ),
    Method("epsilon", "LRP, epsilon", composite="epsilon"),
    Method("epsilon_signed", "LRP, epsilon, signed relevance", composite="epsilon", magnitude=False),
    Method("epsilon_bounded", "LRP, epsilon, bounded initial relevance", composite="epsilon", initial="bounded"),
    Method("epsilon_plus", "LRP, epsilon-plus (z-plus)", composite="epsilon-plus"),
    Method("epsilon_gamma", "LRP, epsilon-gamma", composite="epsilon-gamma", networks=CNNS),
    Method("alpha2_beta1", "LRP, alpha2-beta1", composite="alpha2-beta1", networks=CNNS),
    Method("attnlrp", "LRP, AttnLRP", composite="attnlrp", networks=VITS),
    Method("cp_lrp", "LRP, CP-LRP", composite="cp-lrp", networks=VITS),
    Method("taylor", "Taylor (activation x gradient)", criterion="taylor"),
    Method("integrated_gradients", "integrated gradients", criterion="integrated-gradients"),
    Method("gradient", "gradient", criterion="gradient"),
    Method("activation", "activation", criterion="activation"),
    Method("magnitude", "weight magnitude", criterion="magnitude"),
    Method("random", "random", order="random"),
)
BY_NAME = {method.name: method for method in METHODS}


def methods_of(subject: Subject) -> list[Method]:
    return [method for method in METHODS if not method.networks or subject.network in method.networks]

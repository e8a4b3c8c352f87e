"""The search for the composite that prunes best: which rule for which layers, and with which parameters."""

from __future__ import annotations

import datetime
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import environment
from .errors import DataError, NumericalError, PlanError, PxpError
from .lrp import capture
from .lrp.composites import PRESETS
from .progress import Track
from .scoring import model_name_of
from .version import __version__

if TYPE_CHECKING:
    from .tuning.objective import Objective
    from .tuning.records import Tuning
    from .tuning.space import Candidate, Space, Uses
    from .tuning.study import Study
    from .tuning.trials import Judge

Batches = Iterable[tuple[Tensor, Tensor]]


def tune(
    model: nn.Module,
    reference: Batches,
    judging: Batches,
    *,
    held_out: Batches | None = None,
    out: str | os.PathLike[str] = "tune",
    cache: str | os.PathLike[str] | None = None,
    trials: int = 40,
    objective: str = "a-pr",
    sampler: str = "tpe",
    space: Space | dict | None = None,
    seed: int = 0,
    units: Iterable[str] | None = None,
    initial: str = "bounded",
    scope: str = "kind",
    absolute: str = "pxp",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    graph: bool = True,
    judging_dtype: torch.dtype | None = None,
    model_name: str | None = None,
    progress: Track | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Search for the composite by whose scores a network is pruned best.

    Named composites that the space holds are tried first, ``"epsilon"`` before all, so what is found is never worse
    than they are on the images that judge. Scores and judgements are kept in `out` and never made twice. A search that
    was interrupted, even killed, goes on where it was when it is asked for again, and several processes with the same
    `out` share the trials.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; afterwards exactly as before.
    reference
        The images that score, as for :func:`pxp_fast.score`; to be iterated over once for each composite.
    judging
        Images by which trials are judged, none of which scores. Iterated over several times for each trial.
    held_out
        Images that neither score nor judge: on these the best is compared with epsilon. None: no comparison.
    out
        The folder: ``best.json`` (the composite, as :meth:`Composite.load` and ``score --composite`` take it),
        ``tune.json``, ``study.journal`` and ``cache/``.
    cache
        Where scores and judgements are kept; default: ``cache/`` in `out`. Searches that share it, for different
        objectives say, share all that they have in common.
    trials
        How many there are to be in the end, with those that `out` holds already.
    objective
        ``"a-pr"``: mean accuracy over the rates 0, 0.05 ... 0.95; ``"top-pr"``: the highest of these rates that keeps
        95 % of the accuracy; ``"rate:0.5"``: accuracy with half of the units removed; ``"flops:0.5"``: accuracy at half
        of the FLOPs, those of the slimmed network.
    sampler
        ``"tpe"``; ``"gp"``, a Gaussian process, for which ten trials are drawn at random first (named composites count)
        and none is given up; or ``"random"``.
    space
        Where to look: a :class:`pxp_fast.tuning.space.Space`, or the mapping of one.
    seed
        Of the sampler: the same gives the same trials, in one process.
    units, initial, device, dtype, exact, graph, model_name
        As for :func:`pxp_fast.score`.
    scope, absolute
        As for :func:`pxp_fast.plan`.
    judging_dtype
        Autocast to it when judging; None: as the model is.
    progress
        ``track(iterable, description, total)``; None: silent.
    say
        Called with a line for people after each trial.

    Returns
    -------
    Tuning
        What ``tune.json`` holds; its `composite` is the best.

    Raises
    ------
    PxpError
        Optuna is missing, an option is not known, `out` belongs to another search, images that judge also score ...
    """
    require_extra()
    from .tuning.cache import Cache
    from .tuning.identity import digest, digest_of_graph, digest_of_images, digest_of_weights, refuse_overlap
    from .tuning.objective import Objective
    from .tuning.outcome import contenders, line, record
    from .tuning.records import Tuning
    from .tuning.space import Space, uses_of
    from .tuning.storage import Worker, conclusion
    from .tuning.study import Study
    from .tuning.trials import Judge

    if trials < 1:
        raise PxpError(f"{trials} trials were asked for; ask for at least 1")
    folder, goal = Path(out), Objective.parse(objective)
    space = space if isinstance(space, Space) else Space.of(space or {})
    kinds = tuple(units) if units is not None else None
    splits = {"tuning": judging} | ({} if held_out is None else {"held-out": held_out})
    parts = {"scoring": reference, **splits}
    images = {name: digest_of_images(batches) for name, batches in parts.items()}
    refuse_overlap(parts, images)
    example = _first(reference)
    captured = capture(model, example)
    scored_by = {
        "model": model_name or model_name_of(model),
        "architecture": digest_of_graph(captured),
        "weights": digest_of_weights(model),
        "scoring_images": images["scoring"],
        "units": list(kinds or ()),
        "initial": initial,
        "dtype": str(dtype),
        "exact": exact,
        "version": __version__,
    }
    judged_by = {"scope": scope, "absolute": absolute, "judging_dtype": str(judging_dtype)}
    scored = Path(cache or folder / "cache") / digest(scored_by)
    made_for = scored_by | judged_by | {
        "judging_images": images["tuning"],
        "held_out_images": images.get("held-out"),
        "objective": str(goal),
        "search_space": space.model_dump(mode="json"),
        "sampler": sampler,
        "seed": seed,
    }  # fmt: skip
    judge = Judge(
        model,
        reference,
        splits,
        Cache(scored, {split: scored / f"judged-{digest([judged_by, images[split]])}" for split in splits}),
        example=example,
        scoring_options={"units": kinds, "initial": initial, "device": device, "dtype": dtype, "exact": exact,
                         "graph": graph, "model_name": made_for["model"]},
        plan_options={"scope": scope, "absolute": absolute},
        dtype=judging_dtype,
        progress=progress,
    )  # fmt: skip
    study = Study(folder, sampler, seed, made_for)
    uses = uses_of(captured, kinds)
    flat = sampler == "gp"
    presets, missing = _presets(space, uses, flat)
    study.enqueue(presets)
    with Worker(folder / "workers") as worker:
        while (trial := study.next(worker, trials)) is not None:
            candidate = space.suggest(trial, uses, flat)
            trial.set_user_attr("composite", candidate.composite.describe())
            trial.set_user_attr("magnitude", candidate.magnitude)
            _attempt(study, trial, candidate, judge, goal)
            say(line(study, trial.number, goal))
    with conclusion(folder):
        best, epsilon = contenders(study, judge, goal)
        importance, importance_trials = study.importance()
        tuning = Tuning(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            objective=str(goal),
            sampler=sampler,
            space=space.model_dump(mode="json"),
            made_for=made_for,
            tuning_images=judge.images("tuning"),
            held_out_images=None if held_out is None else judge.images("held-out"),
            best=best,
            epsilon=epsilon,
            trials=tuple(record(trial) for trial in study.finished()),
            missing_presets=tuple(missing),
            running=study.running(),
            importance=importance,
            importance_trials=importance_trials,
            environment=environment.describe(torch.device(device or next(model.parameters()).device)),
        )
        tuning.composite.save(folder / "best.json")
        tuning.save(folder / "tune.json")
    return tuning


def require_extra() -> None:
    """Raise PxpError, naming the pip extra, unless what the search is made with is installed."""
    if importlib.util.find_spec("optuna") is None:
        raise PxpError("tuning needs optuna; install it with: pip install 'pxp_fast[tune]'")


def _first(reference: Batches) -> Tensor:
    """The first images that score, ``[N, C, H, W]``."""
    first = next(iter(reference), None)
    if first is None:
        raise DataError("the reference set is empty, so there is nothing to score; check the folder and classes")
    return first[0]


def _presets(space: Space, uses: Uses, flat: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The parameters of the named composites that the space holds, and the names of those that it does not."""
    from .tuning.space import Candidate

    found: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for name in sorted(PRESETS, key=lambda name: name != "epsilon"):
        parameters = space.parameters_of(Candidate(PRESETS[name], space.magnitude[0]), uses, flat)
        if parameters is None:
            missing.append(name)
        elif parameters not in found.values():  # two that differ in what has no bearing here
            found[name] = parameters
    return found, missing


def _attempt(study: Study, trial: Any, candidate: Candidate, judge: Judge, goal: Objective) -> None:
    """Judge a candidate step by step, and give up when it does worse than most did by then; presets go to the end."""
    accuracies: dict[float, float] = {}
    try:
        steps = judge.steps(goal, candidate)
        for position, rates in enumerate(steps):
            accuracies |= judge.accuracies(candidate, rates)
            if position < len(steps) - 1:
                trial.report(goal.value(accuracies), position)
                if "preset" not in trial.user_attrs and trial.should_prune():
                    return study.tell(trial)
    except (NumericalError, PlanError) as error:
        return study.tell(trial, problem=str(error))
    return study.tell(trial, goal.value(accuracies))

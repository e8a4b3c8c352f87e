"""What a search comes to: each trial's record, and the best candidate beside epsilon."""

from __future__ import annotations

from typing import Any

from ..evaluate import RATES
from ..lrp import Composite
from ..lrp.composites import PRESETS
from .objective import Objective
from .records import Contender, Judged, TrialRecord
from .space import Candidate
from .study import Study
from .trials import Judge


def contenders(study: Study, judge: Judge, goal: Objective) -> tuple[Contender, Contender]:
    """The best candidate and the epsilon composite, which is the best where no trial does better."""
    epsilon = _contender(Candidate(PRESETS["epsilon"], True), None, judge, goal)
    best = study.best()
    if best is None or best.value <= epsilon.tuning.value:
        return epsilon, epsilon
    chosen = Candidate(Composite.from_mapping(best.user_attrs["composite"]), best.user_attrs["magnitude"])
    return _contender(chosen, best.number, judge, goal), epsilon


def _contender(candidate: Candidate, number: int | None, judge: Judge, goal: Objective) -> Contender:
    steps = judge.steps(goal, candidate)
    wanted = {rate for rates in steps for rate in rates}
    judged: dict[str, Judged] = {}
    for split in judge.splits:
        found = judge.accuracies(candidate, sorted(wanted | set(RATES)), split)
        value = goal.value({rate: found[rate] for rate in wanted})
        at = None if goal.at is None else max(wanted)
        judged[split] = Judged(value=value, at=at, rates=RATES, accuracies=tuple(found[rate] for rate in RATES))
    return Contender(
        composite=candidate.composite.describe(),
        magnitude=candidate.magnitude,
        trial=number,
        tuning=judged["tuning"],
        held_out=judged.get("held-out"),
    )


def record(trial: Any) -> TrialRecord:
    """A trial as `tune.json` holds it."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    values = sorted(trial.intermediate_values.items())
    return TrialRecord(
        number=trial.number,
        state=names[trial.state.name],
        value=trial.value,
        composite=trial.user_attrs["composite"],
        magnitude=trial.user_attrs["magnitude"],
        parameters=trial.params,
        preset=trial.user_attrs.get("preset"),
        intermediate=tuple(value for _, value in values),
        seconds=None if trial.duration is None else round(trial.duration.total_seconds(), 3),
        problem=trial.user_attrs.get("problem"),
    )


def line(study: Study, number: int, goal: Objective) -> str:
    """What became of a trial."""
    trial = next(trial for trial in study.finished() if trial.number == number)
    found = record(trial)
    name = f" ({found.preset})" if found.preset else ""
    best = study.best()
    known = "" if best is None else f"; best {best.value:.4f}, trial {best.number}"
    if found.state == "failed":
        return f"trial {number}{name} failed: {found.problem}{known}"
    what = goal.title if found.state == "complete" else "given up at"
    return f"trial {number}{name}: {what} {found.value:.4f}{known}, {found.seconds:.1f} s"

"""An Optuna study that several processes work on, each of which may be killed at any moment."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ..errors import OutputError, PxpError
from .records import LEAST_FOR_IMPORTANCE
from .storage import Worker, alive, journal, locked

SAMPLERS = ("tpe", "gp", "random")
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_GOOD = 0.25


class Study:
    """The trials of a folder.

    A trial's parameters depend on the seed, its number, and the trials before it: a study that was interrupted between
    two trials goes on as it would have without.

    Parameters
    ----------
    folder
        Where the journal is, or will be.
    made_for
        What the study is of; a folder that holds a study of something else is refused.
    """

    def __init__(self, folder: Path, sampler: str, seed: int, made_for: Mapping[str, Any]) -> None:
        self.folder = folder
        with self._alone():
            self.study = optuna.create_study(
                study_name="pxp_fast",
                storage=journal(folder / "study.journal"),
                sampler=_ByNumber(sampler, seed),
                pruner=_pruner(sampler),
                direction="maximize",
                load_if_exists=True,
            )
            found = self.study.user_attrs.get("made_for")
            if found is None:
                self.study.set_user_attr("made_for", dict(made_for))
            elif different := sorted(k for k in {*found, *made_for} if found.get(k) != made_for.get(k)):
                name = different[0]
                raise OutputError(
                    f"{folder} holds a study with another {name.replace('_', ' ')} ({found.get(name)}; here "
                    f"{made_for.get(name)}): give another folder with --out, or the options that it was started with"
                )

    def enqueue(self, presets: Mapping[str, Mapping[str, Any]]) -> None:
        """Let the named parameters be tried first, in their order, unless they are in the study already."""
        with self._alone():
            there = {trial.user_attrs.get("preset") for trial in self.study.get_trials(deepcopy=False)}
            for name in (name for name in presets if name not in there):
                self.study.enqueue_trial(dict(presets[name]), user_attrs={"preset": name})

    def next(self, worker: Worker, trials: int) -> Trial | None:
        """A new trial, or one that a killed process left unfinished; None when `trials` are finished or under way."""
        with self._alone():
            self._take_over()
            found = self.study.get_trials(deepcopy=False)
            counted = sum(t.state == TrialState.RUNNING or _counts(t) for t in found)
            if counted >= trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr("worker", worker.name)
            return trial

    def tell(self, trial: Trial, value: float | None = None, *, problem: str | None = None) -> None:
        """Finish a trial: with its value, with a problem, or (with neither) as hopeless."""
        if problem is not None:
            trial.set_user_attr("problem", problem)
            self.study.tell(trial, state=TrialState.FAIL)
        elif value is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    def finished(self) -> list[FrozenTrial]:
        """In order of their numbers."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if _counts(trial)]

    def running(self) -> int:
        """How many trials processes are at."""
        with self._alone():
            self._take_over()
            return sum(t.state == TrialState.RUNNING for t in self.study.get_trials(deepcopy=False))

    def best(self) -> FrozenTrial | None:
        """The first of the trials with the highest value."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def importance(self) -> tuple[dict[str, float], int]:
        """Each parameter's share in what tells good trials from others, largest first, and the number of trials.

        Good is the best quarter by the value after the first step, which trials that were given up have as well. Empty
        where the trials are too few to tell.
        """
        values = [(trial, trial.intermediate_values.get(0, trial.value)) for trial in self.finished()]
        known = [(trial, value) for trial, value in values if value is not None]
        if len(known) < LEAST_FOR_IMPORTANCE:
            return {}, len(known)
        with _quiet():
            beside = optuna.create_study(direction="maximize")
            for trial, value in known:
                given = {"params": trial.params, "distributions": trial.distributions}
                beside.add_trial(optuna.trial.create_trial(value=value, **given))
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_GOOD)
            try:
                found = optuna.importance.get_param_importances(beside, evaluator=evaluator)
            except (ValueError, RuntimeError):  # all values alike
                return {}, len(known)
        return {name: float(share) for name, share in found.items()}, len(known)

    def _take_over(self) -> None:
        """Let the trials of processes that are no more be tried again."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not alive(self.folder / "workers", trial.user_attrs.get("worker")):
                # Killed again between these two lines, it is tried twice, which costs nothing.
                if parameters := trial.system_attrs.get("fixed_params") or trial.params:
                    kept = {name: value for name, value in trial.user_attrs.items() if name == "preset"}
                    self.study.enqueue_trial(parameters, user_attrs=kept)
                self.study.tell(trial.number, state=TrialState.FAIL)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process chooses what to do next."""
        with locked(self.folder / ".study.lock"), _quiet():
            yield


class _ByNumber(optuna.samplers.BaseSampler):
    """A sampler that starts afresh for each trial, from a seed that the trial's number decides."""

    def __init__(self, name: str, seed: int) -> None:
        self._make, self._seed = _maker(name), seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        digest = hashlib.sha256(f"{self._seed}:{trial.number}".encode()).digest()
        self._sampler = self._make(int.from_bytes(digest[:4]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        with _quiet():
            return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        return self._sampler.sample_independent(study, trial, name, distribution)


def _maker(name: str) -> Callable[[int], optuna.samplers.BaseSampler]:
    if name == "tpe":
        return lambda seed: optuna.samplers.TPESampler(seed=seed)
    if name == "gp":
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise PxpError("the sampler gp needs scipy; install it with: pip install 'pxp_fast[tune]'") from error
        return lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)
    if name == "random":
        return lambda seed: optuna.samplers.RandomSampler(seed=seed)
    raise PxpError(f"sampler {name!r} is not known; choose one of {', '.join(SAMPLERS)}")


def _pruner(sampler: str) -> optuna.pruners.BasePruner:
    """What gives up hopeless trials: nothing for a Gaussian process, which learns from trials judged to the end."""
    if sampler == "gp":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_min_trials=4)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is finished; one that a killed process left is not, as it is tried again."""
    return trial.state in _FINISHED and (trial.state != TrialState.FAIL or "problem" in trial.user_attrs)


@contextmanager
def _quiet() -> Iterator[None]:
    """While Optuna neither tells of every trial nor warns of what is experimental in it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)

"""The command ``plan``."""

from __future__ import annotations

from pathlib import Path

from .commands import prepare, scores_path
from .config import RunConfig
from .errors import DataError, ScoresError
from .loader import Loader
from .planning import Planner, looks_at_model
from .run import autocast, of_classes
from .scores import Scores
from .selection import for_task, judging, scored_paths
from .tasks import Task


def plan(scores: Path, config: RunConfig, out: Path | None) -> str:
    """Plan; returns what it removes and the path of the file."""
    path = scores_path(scores)
    found = Scores.load(path)
    if words := [word for word in config.classes if not word.isdecimal()]:
        raise ScoresError(f"scores know classes by their labels, not by names such as {words[0]!r}: give numbers")
    if config.classes and config.keep_classes:
        raise ScoresError("--classes and --keep-classes say the same; give one of them")
    keep = config.keep_classes or tuple(map(int, config.classes))
    planner = _planner(found, config)
    made = planner.plan(of_classes(found, config.model_copy(update={"keep_classes": keep})))
    target = (out or path.parent) / "plan.json"
    made.save(target)
    lines = [f"{made.removed_count} of {made.total_count} units to remove"]
    lines += [] if planner.achieved is None else planner.achieved.lines()[1:]
    return "\n".join([*lines, str(target)])


def _planner(scores: Scores, config: RunConfig) -> Planner:
    """With the network that scored, where it matters, and images that did not score, where they do."""
    if not looks_at_model(config):
        return Planner(config)
    config = config.model_copy(update={"model": config.model or scores.header.model, "classes": ()})
    scores.check_model(config.model)
    if config.max_drop is not None and not config.data:
        raise DataError("--max-drop is judged on images that did not score: give their folder with --data")
    loaded, _ = prepare(config)
    found = (scores.header.data or {}).get("task")
    task = None if found is None else Task(tuple(found["classes"]), found["mode"])
    if config.max_drop is None:
        loaded, *_ = for_task(task, loaded)
        return Planner(config, loaded.model, loaded.input_size)
    if task is not None:
        config = config.model_copy(update={"classes": tuple(map(str, task.classes))})
    loaded, images = for_task(task, loaded, judging(config, loaded, scored_paths(scores)))
    loader = Loader(images, config.batch_size, config.workers)
    return Planner(config, loaded.model, loaded.input_size, loader, autocast(config))

"""One self-contained page that says what pruning did: no script, no network, readable on any screen."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PxpError
from ..files import atomic_write

if TYPE_CHECKING:
    from markupsafe import Markup

    from ..heatmaps import HeatMaps
    from ..results import Results

_NEEDED = ("jinja2", "matplotlib")


def require_extra() -> None:
    """Raise PxpError, naming the pip extra, unless what the page is made with is installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise PxpError(f"the report needs {' and '.join(missing)}; install with: pip install 'pxp_fast[report]'")


def render(runs: Sequence[tuple[Results, HeatMaps]]) -> str:
    """The page for one run, or for several side by side, as HTML."""
    require_extra()
    import jinja2

    from . import figures, figures_smaller, pictures, smaller, words

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": words.percent, "count": words.count, "points": smaller.points}
    sections = [
        {
            "anchor": f"run-{position}",
            "results": results,
            "criterion": words.criterion(results),
            "headline": words.headline(results),
            "summary": words.summary(results),
            "tiles": [*words.tiles(results)[:3], *smaller.tiles(results), *words.tiles(results)[3:]],
            "classes": words.class_changes(results),
            "classes_words": words.class_changes_alt(results),
            "class_figure": _both(figures_smaller.classes, words.class_changes(results), position),
            "curve": _both(figures.curve, results, position),
            "curve_words": words.curve_alt(results),
            "curve_table": words.curve_table(results),
            "layers": [figures.layers(results, position)],
            "layers_words": words.layers_alt(results),
            "pictures": pictures.rows(maps),
            "smaller": _smaller(results, position),
        }
        for position, (results, maps) in enumerate(runs)
    ]
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return environment.from_string(template).render(sections=sections, style=style)


def _both(draw: Callable[..., Markup], *content: object) -> list[Markup]:
    """A figure for wide windows and one for narrow ones; the page shows that which fits."""
    return [draw(*content), draw(*content, narrow=True)]


def _smaller(results: Results, position: int) -> dict[str, object]:
    """What the page says of costs, of the images judged twice and of explanations; none of it in older files."""
    from . import figures_smaller, smaller

    found: dict[str, object] = {
        "slimmed": results.slimmed and smaller.slimmed(results.slimmed),
        "paired": results.paired and smaller.compared(results.paired),
        "costs": None,
        "agreement": None,
    }
    if results.costs is not None:
        found["costs"] = smaller.costs_table(results.costs)
        found["costs_words"] = smaller.costs_words(results.costs)
        found["costs_figure"] = _both(figures_smaller.costs, results.costs, position)
        found["speeds"] = smaller.speeds(results.costs)
        found["how"] = smaller.how_measured(results.costs)
    if results.agreement:
        found["agreement"] = smaller.agreement_table(results.agreement)
        found["agreement_words"] = smaller.agreement_words(results.agreement)
        found["agreement_figure"] = _both(figures_smaller.agreement, results.agreement, position)
    return found


def save(page: str, path: str | os.PathLike[str]) -> None:
    """Write the page, atomically."""
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")

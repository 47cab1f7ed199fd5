"""What a search for a mixture of tasks found, and how to read it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sb3_softmod.common.files import write_text
from sb3_softmod.evaluation.result import interval, number, percent, wilson_interval, without_nan

if TYPE_CHECKING:
    import pandas as pd

#: Where a mixture comes from: a task alone, all alike, or the search.
ORIGINS = ("task", "uniform", "search")

#: Rows of a printed table.
_ROWS = 10

#: Tasks that the title of a mixture names, and the least share of one.
_MOST_NAMES, _LEAST = 3, 0.005


@dataclass(frozen=True)
class TriedMixture:
    """A mixture, and what it did.

    :param origin: one of :data:`ORIGINS`
    :param mixture: the share of each task
    :param success_rate: share of episodes that succeeded; NaN for a task that reports no success
    :param mean_return: mean undiscounted return
    """

    origin: str
    mixture: dict[str, float]
    success_rate: float
    mean_return: float

    @property
    def score(self) -> tuple[float, float]:
        """What is maximised: success and, of two with the same, the return."""
        return (-1.0 if math.isnan(self.success_rate) else self.success_rate), self.mean_return

    @property
    def title(self) -> str:
        """The tasks with the largest shares."""
        if self.origin == "uniform":
            return self.origin
        largest = sorted(self.mixture.items(), key=lambda pair: -pair[1])[:_MOST_NAMES]
        parts = [f"{percent(share)} {task}" for task, share in largest if share >= _LEAST]
        others = 1 - sum(share for _, share in largest if share >= _LEAST)
        return ", ".join([*parts, *[f"{percent(others)} others"] * (others >= _LEAST)])


@dataclass(frozen=True)
class MixtureSearch:
    """What :func:`.search_mixture` found. ``print`` shows it as a table.

    :param task: the unseen task
    :param best: the best mixture of the search, in fresh episodes, which the search did not see
    :param final: in the same fresh episodes the best task alone, the uniform mixture and the best that the search
        proposed; one of them is ``best``
    :param tried: all mixtures in the episodes of the search, in its order
    :param settings: how it was searched: episodes, trials, seed, ...
    """

    task: str
    best: TriedMixture
    final: list[TriedMixture]
    tried: list[TriedMixture]
    settings: dict[str, Any]

    @property
    def mixture(self) -> dict[str, float]:
        """The best one, for :meth:`.MultiTaskSAC.with_route`."""
        return self.best.mixture

    def to_frame(self) -> pd.DataFrame:
        """A row for each mixture that was tried, with a column for the share of each task (needs pandas)."""
        import pandas as pd

        rows = [{**dataclasses.asdict(each), **each.mixture} for each in self.tried]
        return pd.DataFrame(rows).drop(columns="mixture").rename_axis("trial")

    def to_json(self, path: str | Path | None = None) -> str:
        """As JSON; NaN becomes null. Its ``"mixture"`` is what :meth:`.MultiTaskSAC.with_route` takes.

        :param path: a file to write it to, too
        :raises FileError: if it cannot be written
        """
        content = {"mixture": self.mixture, **dataclasses.asdict(self)}
        text = json.dumps(without_nan(content), indent=1)
        if path is not None:
            write_text(path, text + "\n")
        return text

    def table(self) -> Table:
        """In the fresh episodes the best and what it is compared with; below, the ten best in those of the search."""
        table = Table(
            title=escape(f"{self.task} by mixtures of other tasks"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("episodes", no_wrap=True)
        for column in ("success", "95 % interval", "return"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("mixture")
        ranked = sorted(self.tried, key=lambda each: each.score, reverse=True)
        for rows, episodes, kind in (
            (self.final, self.settings["final_episodes"], " fresh"),
            (ranked[:_ROWS], self.settings["episodes"], ""),
        ):
            for each in rows:
                bounds = interval(wilson_interval(each.success_rate, episodes))
                title = Text(f"best: {each.title}" if each is self.best else each.title)
                table.add_row(f"{episodes}{kind}", percent(each.success_rate), bounds, number(each.mean_return), title)
            table.add_section()
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120, force_jupyter=False, force_terminal=False).print(self.table())
        return text.getvalue().rstrip()

"""CSV files that a training writes and goes on with."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from sb3_softmod.common.files import replacing


def keep_rows(path: Path, column: str, steps: int) -> None:
    """Take the rows of later steps out of a CSV file, and one that is half-written.

    :param path: of the file; nothing happens without one
    :param column: that holds environment steps
    :param steps: the last to keep
    """
    if not path.exists():
        return
    with path.open(newline="", errors="replace") as file:  # line ends as they are
        header, *rows = [line for line in file if line.endswith("\n")] or [""]
    names = next(csv.reader([header]), [])
    index = names.index(column) if column in names else 0
    kept = [row for row in rows if len(cells := next(csv.reader([row]))) > index and number(cells[index]) <= steps]
    with replacing(path) as draft, draft.open("w", newline="") as file:
        file.write("".join([header, *kept]))


def number(text: str) -> float:
    """What a cell says; NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def last_rows(path: Path, nbytes: int = 200_000) -> list[dict[str, str]]:
    """The last whole rows of a CSV file that somebody else may be writing, however large it is.

    :param path: of the file; no rows without one
    :param nbytes: of the end of the file that are read
    """
    try:
        with path.open("rb") as file:
            header = file.readline()
            begin = file.seek(max(file.seek(0, 2) - nbytes, len(header)))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)[begin > len(header) :]
    except OSError:
        return []
    names = next(csv.reader([header.decode(errors="replace")]), [])
    rows = list(csv.reader([line for line in lines if line.endswith("\n")]))
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]

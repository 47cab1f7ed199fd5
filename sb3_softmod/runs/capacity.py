"""Success beside the size of the network, as in Table 2 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.runs.parameters import REFERENCE
from sb3_softmod.runs.results import (
    Entry,
    Format,
    check_format,
    collect,
    differences_of,
    latex_text,
    render,
    score_cell,
)
from sb3_softmod.runs.run import Run


def capacity_table(runs: Sequence[Run], benchmark: str, format: Format = "markdown") -> str:
    """For each method on one benchmark: success, parameters of actor and critics, their ratio to Ours (Deep), and the
    options of the network.

    Runs of other settings, or evaluated otherwise, have rows of their own. Without a run of Ours
    (Deep), the ratios are to the first row.

    What is different between rows of a method stands with its name.

    :param runs: what :func:`.find_runs` found
    :param benchmark: a task set; the paper's is MT50-Fixed
    :param format: "markdown", "latex" or "csv"
    :raises ConfigurationError: for an unknown format, a benchmark without runs, or a seed that was run twice
    """
    check_format(format)
    every = collect(runs)
    entries = [entry for entry in every if entry.benchmark == benchmark]
    if not entries:
        known = ", ".join(sorted({entry.benchmark for entry in every})) or "nothing"
        raise ConfigurationError(f"No run on {benchmark}; there are runs on {known}.")
    reference = next((entry for entry in entries if entry.method == REFERENCE), entries[0])
    unsized = [replace(entry, setting=entry.setting._replace(parameters=None)) for entry in entries]  # a column has it
    titles = [", ".join(filter(None, [entry.title, differences_of(entry, unsized)])) for entry in unsized]
    rows = [[title, *_numbers(entry, reference), entry.network] for title, entry in zip(titles, entries, strict=True)]
    if format == "csv":
        header = ["method", "title", "benchmark", "seeds", "mean", "std", "parameters", "relative", "network"]
        lines = []
        for entry, (title, parameters, relative, network) in zip(entries, rows, strict=True):
            found = entry.aggregate
            scores = [
                len(entry.scores),
                *(("", "") if found is None else (found.mean, "" if found.std is None else found.std)),
            ]
            size = [parameters.replace(",", ""), relative.rstrip("x")]
            lines.append([entry.method, title, benchmark, *scores, *size, network])
        return render(format, header, lines)
    header = ["Method", benchmark, "parameters", f"relative to {reference.title}", "network"]
    cells = [[title, score_cell([entry], format), *rest] for entry, (title, *rest) in zip(entries, rows, strict=True)]
    if format == "latex":
        cells = [[*row, latex_text(network)] for *row, network in cells]
    return render(format, header, cells)


def _numbers(entry: Entry, reference: Entry) -> list[str]:
    """Parameters and their ratio, empty where the manifests do not say."""
    count, of_reference = entry.setting.parameters, reference.setting.parameters
    if count is None:
        return ["", ""]
    return [f"{count:,}", f"{count / of_reference:.2f}x" if of_reference else ""]

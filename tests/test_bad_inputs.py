"""Every bad input that :mod:`bad_inputs` knows is refused: by an error of the package's own that says what is bad,
without a hang and without half a file.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
from bad_inputs import BadInput, families, generate, outcome

from sb3_softmod import ConfigurationError

FAMILIES = families(np.random.default_rng(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_inputs(family: str, tmp_path: Path) -> None:
    problems = []
    for number, case in enumerate(FAMILIES[family]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if (problem := outcome(case, folder)) is not None:
            problems.append(f"{case.text}: {problem}")
    assert not problems, "\n".join(problems)


def test_500_of_all_families() -> None:
    cases = generate(500, seed=0)
    assert len({(case.family, case.text) for case in cases}) == 500
    counts = Counter(case.family for case in cases)
    assert counts.keys() == FAMILIES.keys()
    assert min(counts.values()) >= 20
    again = [(case.family, case.text) for case in generate(500, seed=0)]
    assert again == [(case.family, case.text) for case in cases]


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("nothing", "was accepted"),
        ("another error", "ZeroDivisionError"),
        ("no name", "does not mention 'gamma'"),
        ("no message", "is not clear"),
        ("a file", "left files behind"),
        ("a changed file", "left files behind"),
        ("a hang", "TimeoutError"),
    ],
)
def test_what_counts_as_unclear(what: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked for would be found."""
    monkeypatch.setattr(bad_inputs, "PATIENCE", 0.1)

    def run(folder: Path) -> None:
        if what == "another error":
            _ = 1 / 0
        if what == "no name":
            raise ConfigurationError("It must be a number from 0 to 1.")
        if what == "no message":
            raise ConfigurationError("gamma")
        if what == "a hang":
            time.sleep(5)
        if what != "nothing":
            (folder / ("new" if what == "a file" else "file")).write_text("half of")
            raise ConfigurationError("gamma must be from 0 to 1.")

    case = BadInput("mine", what, run, "gamma", lambda folder: (folder / "file").write_text("good"))
    assert found in str(outcome(case, tmp_path))

"""Bad inputs by the hundred: what a user, a disk or a stranger can hand to the library that it cannot work with.

:func:`generate` makes them from a seed, :func:`outcome` says what the library does with one. Used by the tests and by
``benchmarks/faults.py``.
"""

from __future__ import annotations

import itertools
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softmod import EnvError, SoftModError

#: Seconds after which an input that was neither taken nor refused counts as a hang.
PATIENCE = 20.0


@dataclass(frozen=True)
class BadInput:
    """One of them.

    :param family: what it is about
    :param text: what is bad
    :param run: hands it to the library; in a folder of its own
    :param mentions: the error must say this: the argument, the task, the file
    :param prepare: makes the files that it needs
    """

    family: str
    text: str
    run: Callable[[Path], Any]
    mentions: str
    prepare: Callable[[Path], Any] = lambda folder: None


def later(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[Path], Any]:
    """A call that needs no folder."""
    return lambda folder: function(*args, **kwargs)


def at(function: Callable[[Any], Any], name: Any) -> Callable[[Path], Any]:
    """A call with the path of a name in the folder; what is no name stays as it is."""
    return lambda folder: function(folder / name if isinstance(name, str) else name)


def of_file(family: str, text: str, name: str, content: bytes, run: Callable[[Path], Any]) -> BadInput:
    """A file of that name and content; the error must name it."""
    return BadInput(
        family, text, lambda folder: run(folder / name), name, lambda folder: (folder / name).write_bytes(content)
    )


def families(rng: np.random.Generator) -> dict[str, list[BadInput]]:
    """All bad inputs.

    :param rng: for what is random in them
    """
    import bad_arguments
    import bad_command_lines
    import bad_env_data
    import bad_evaluations
    import bad_files
    import bad_learner
    import bad_loading
    import bad_published
    import bad_run_folders

    found: dict[str, list[BadInput]] = {}
    for case in (
        *bad_arguments.every(),
        *bad_command_lines.every(),
        *bad_env_data.every(),
        *bad_evaluations.every(),
        *bad_files.every(rng),
        *bad_learner.every(),
        *bad_loading.every(),
        *bad_published.every(),
        *bad_run_folders.every(rng),
    ):
        found.setdefault(case.family, []).append(case)
    return found


def generate(count: int = 500, seed: int = 0) -> list[BadInput]:
    """Some bad inputs, as many of each family as of the others where it has them.

    :param count: how many, all different
    :param seed: of the choice, and of what is random in them
    """
    rng = np.random.default_rng(seed)
    mixed = [[cases[index] for index in rng.permutation(len(cases))] for cases in families(rng).values()]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*mixed))
    return list(itertools.islice((case for case in rounds if case is not None), count))


def outcome(case: BadInput, folder: Path) -> str | None:
    """What the library does with it.

    :param folder: an empty one
    :return: None for a clear error of the library's own; what it does instead
    """
    case.prepare(folder)
    before = _contents(folder)
    start = time.monotonic()
    try:
        with _alarm(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.run(folder)
        return "was accepted"
    except SoftModError as error:
        message = str(error)
        if case.mentions not in message:
            return f"does not mention {case.mentions!r}: {message}"
        trace = "Traceback" in message and not isinstance(error, EnvError)
        if len(message) < len(case.mentions) + 10 or trace or "string>" in message:  # "<unicode string>", "<string>"
            return f"is not clear: {message!r}"
    except Exception as error:  # what is looked for
        return f"{type(error).__name__}: {error}"
    if _contents(folder) != before:
        return f"left files behind: {sorted(set(_contents(folder)) - set(before)) or 'a changed one'}"
    took = time.monotonic() - start
    return f"took {took:.1f} s" if took > PATIENCE / 2 else None


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"hung for {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

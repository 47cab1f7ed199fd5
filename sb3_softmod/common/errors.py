"""The errors of the package. Their messages say what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

#: What to do when MuJoCo cannot draw.
RENDERING_ADVICE = (
    "On Linux without a display, set MUJOCO_GL=egl or, for software rendering, MUJOCO_GL=osmesa before Python "
    "starts; the latter needs the Debian package libosmesa6 (apt-get install libosmesa6)."
)


class SoftModError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigurationError(SoftModError, ValueError):
    """An argument, option, task set or environment that cannot work; raised before any training."""


class FileError(ConfigurationError, OSError):
    """A file that cannot be read or written, or is not what it should be; the message names it."""


class NonFiniteError(SoftModError, ValueError):
    """A NaN or an infinity where a finite number is needed."""


class CheckpointError(SoftModError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file, and what is wrong with it."""


class EnvError(SoftModError, RuntimeError):
    """An env that raised, or a worker process that died; the message names task and env and ends in the traceback."""


def nearest(name: str, known: Iterable[str], variants: Mapping[str, Iterable[str]] | None = None) -> str:
    """A clause that names the known names nearest to an unknown one.

    :param name: what the user wrote
    :param known: the names that would have been accepted
    :param variants: more precise names for some of them, which are offered beside the nearest
    :return: ``"did you mean ...?"``, or the list of all names when none is near
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        close[1:1] = (variants or {}).get(close[0], ())
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"known are {', '.join(map(repr, names))}"

"""Write a policy as a file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch as th

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import as_path, check_file, replacing
from sb3_softmod.common.version import __version__
from sb3_softmod.deployment.deployed_policy import DeployedPolicy

#: The formats, by how a file ends.
FORMATS = {".onnx": "ONNX", ".pt": "TorchScript"}
#: What torch writes by itself; to older ones it can only convert, and not everything.
OPSET = 18
#: The names of the inputs and the output, in every format.
INPUTS, OUTPUT = ("observation", "task"), "action"
#: What a TorchScript file calls the facts that an ONNX file has in its metadata.
FACTS = "policy.json"


def check_export(path: str | Path, opset: int | None) -> Path:
    """Refuse what cannot be exported to, before work starts.

    :raises ConfigurationError: for another ending than those of :data:`FORMATS`, an opset of a format that has none, or
        a missing package
    :raises FileError: for a path that cannot be written
    """
    path = as_path(path)
    if path.suffix not in FORMATS:
        kinds = " or ".join(f"{suffix} ({name})" for suffix, name in FORMATS.items())
        raise ConfigurationError(f"A policy is exported to a file that ends in {kinds}, not to {path.name!r}.")
    if path.suffix == ".pt" and opset is not None:
        raise ConfigurationError(f"opset is for .onnx, and {path.name} is TorchScript, which has none.")
    if opset is not None:
        require_integer("opset", opset, 7)
    check_file(path)
    if path.suffix == ".onnx":
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(f"ONNX needs {error.name}: pip install 'sb3-softmod[onnx]'.") from error
    return path


def export_policy(policy: DeployedPolicy, path: Path, task_names: Sequence[str], opset: int | None = None) -> Path:
    """Write a policy, with its task names, to a path of :func:`check_export`.

    :param policy: on the CPU
    :param path: whose ending says the format
    :param task_names: M, in the order of the entries of the one-hot task
    :param opset: of ONNX; default :data:`OPSET`
    :return: the path
    :raises ConfigurationError: for an opset that torch cannot write
    :raises FileError: if the file cannot be written; one that was there then stays as it was
    """
    facts = {"task_names": json.dumps(list(task_names)), "sb3_softmod": __version__}
    with replacing(path) as draft, th.no_grad(), _quiet():
        if path.suffix == ".onnx":
            _write_onnx(policy, draft, facts, OPSET if opset is None else opset)
        else:
            traced = th.jit.freeze(th.jit.trace(policy.eval(), policy.example()))
            th.jit.save(traced, str(draft), _extra_files={FACTS: json.dumps(facts)})
    return path


def _write_onnx(policy: DeployedPolicy, path: Path, facts: dict[str, str], opset: int) -> None:
    batch = th.export.Dim("batch")
    try:
        program = th.onnx.export(
            policy.eval(),
            policy.example(),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=opset,
            verbose=False,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"torch cannot write this policy as ONNX of opset {opset}: {error}") from error
    assert program is not None
    found = program.model.opset_imports[""]
    if found != opset:  # torch logs that it could not convert, and gives what it has
        raise ConfigurationError(f"torch cannot write this policy in opset {opset}, only in {found}.")
    program.model.metadata_props.update(facts)
    program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own deprecations, and of packages that no policy needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

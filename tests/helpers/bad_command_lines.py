"""Bad command lines, and bad files that they name, for :mod:`bad_inputs`."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch as th
from bad_inputs import BadInput
from run_folders import write_run

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main

TRAIN = "train --algo softmod_deep --env MT3 --conf-file laptop -n 9"
ENJOY = "enjoy --algo softmod_deep --env MT3"
#: A run that :func:`make` makes.
RUN = "logs/mt_sac/MT10-Fixed_0"


def every() -> list[BadInput]:
    """All of them."""
    lines = [*names(), *counts(), *values(), *places(), *runs()]
    return [*(BadInput("command lines", line, partial(call, line), what, make) for line, what in lines), *files()]


def call(line: str, folder: Path) -> None:
    """Give a command line in a folder; one that ends with status 2 and a line for people raises that line."""
    before, said = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            status = main(shlex.split(line))
    finally:
        os.chdir(before)
    if status == 2 and said.getvalue().startswith("sb3-softmod: "):
        raise ConfigurationError(said.getvalue())


def make(folder: Path) -> None:
    write_run(folder / "logs", "mt_sac", 0, {1000: [0.2, 0.4]})
    (folder / "file").write_text("a file")


def names() -> Iterator[tuple[str, str]]:
    """What is misspelt; the nearest is offered."""
    yield "trian", "'trian': did you mean 'train'?"
    yield "tabel params", "'tabel': did you mean 'table'?"
    yield "deom --steps 3", "'deom': did you mean 'demo'?"
    yield "table result", "'result': did you mean 'results'?"
    yield "plot curve", "'curve': did you mean 'curves'?"
    yield "plot profile logs", "'profile': did you mean 'profiles'"
    yield "plot ruoting", "'ruoting': did you mean 'routing'"
    for command, option, meant in (
        ("demo", "--step 3 --sede 4", "--seed"),
        ("table params", "--evn MT10", "--env"),
        ("table results logs", "--fromat csv", "--format"),
        ("table capacity logs", "--fromat=csv", "--format"),
        ("plot curves logs", "--by-tsk", "--by-task"),
        ("plot profiles logs", "--uot figures", "--out"),
        (f"plot routing {RUN}", "--step 3 --bset", "--best"),
        (f"evaluate {RUN}", "--protocl paper", "--protocol"),
        (f"report {RUN}", "--vdeo", "--video"),
        (f"export {RUN}", "--bset", "--best"),
        (f"adapt {RUN} --tasks push-v3", "--tuen all", "--tune"),
        (f"mixture {RUN} --task push-v3", "--trails 9", "--trials"),
        (TRAIN, "--n-timestps 10", "--n-timesteps"),
        (TRAIN, "--env-kwarg horizon:3 --devcie cpu", "--device"),
        (ENJOY, "--load-bset", "--load-best"),
    ):
        yield f"{command} {option}", f"did you mean '{meant}'"
    yield f"{TRAIN} --vec-env dumy", "Unknown --vec-env 'dumy': did you mean 'dummy'?"
    yield f"{TRAIN} --sampler tp", "Unknown --sampler 'tp': did you mean 'tpe'?"
    yield f"{TRAIN} --pruner mean", "Unknown --pruner 'mean': did you mean 'median'?"
    yield "table params --env MT51", "'MT51': did you mean 'MT50'"
    yield "table results logs --format latx", "'latx': did you mean 'latex'?"
    yield "table capacity logs --env MT10-Fixed --format cvs", "'cvs': did you mean 'csv'?"


def counts() -> Iterator[tuple[str, str]]:
    """Too few of something, or no number."""
    for command, options in (
        ("demo", ("steps", "episodes")),
        (f"plot routing {RUN}", ("steps",)),
        (f"evaluate {RUN}", ("episodes",)),
        (f"mixture {RUN} --task push-v3", ("episodes",)),
        (f"adapt {RUN} --tasks push-v3", ("n-timesteps", "eval-episodes", "num-threads")),
        (ENJOY, ("episodes", "num-threads")),
        (
            TRAIN,
            (
                *("n-timesteps", "eval-episodes", "n-eval-envs", "num-threads"),
                *("n-trials", "max-total-trials", "n-evaluations", "trial-id"),
            ),
        ),
    ):
        for option in options:
            yield f"{command} --{option} 0", f"--{option} must be at least 1, not 0."
            yield f"{command} --{option} -3", f"--{option} must be at least 1, not -3."
            yield f"{command} --{option} 2.5", f"--{option}: invalid int value: '2.5'"
            yield f"{command} --{option}", f"--{option}: expected one argument"
    yield f"{TRAIN} -n 0", "--n-timesteps must be at least 1, not 0."
    yield f"{TRAIN} -n 1e6", "--n-timesteps: invalid int value: '1e6'"
    yield f"{TRAIN} --n-startup-trials -1", "--n-startup-trials must be at least 0, not -1."
    yield f"{TRAIN} --verbose -1", "--verbose must be at least 0, not -1."
    yield f"{TRAIN} --log-interval 0", "--log-interval must not be 0."
    yield f"{TRAIN} --n-jobs 0", "--n-jobs must not be 0."
    yield f"{TRAIN} -params n_timesteps:0", "-params: n_timesteps must be at least 1, not 0."
    yield f"{TRAIN} -params n_envs:0", "-params: n_envs must be at least 1, not 0."
    yield f"{TRAIN} -params n_envs:3.0", "-params: n_envs must be an integer, not 3.0."
    yield f"{TRAIN} -params frame_stack:-1", "-params: frame_stack must be at least 1, not -1."
    adapt, mixture = f"adapt {RUN} --tasks push-v3 -n 9", f"mixture {RUN} --task push-v3"
    for command in ("demo", TRAIN, ENJOY, f"evaluate {RUN}", f"plot routing {RUN}", adapt, mixture):
        for seed in (2**32, -7):
            yield f"{command} --seed {seed}", f"seed must be from 0 to 4294967295, not {seed}."
        yield f"{command} --seed one", "--seed: invalid int value: 'one'"


def values() -> Iterator[tuple[str, str]]:
    """What is there, and cannot be used."""
    for command in (TRAIN, ENJOY):
        yield f"{command} --device gpu", "--device must be a device such as 'cpu' or 'cuda', not 'gpu'"
        yield f"{command} --device cpu:one", "--device must be a device such as 'cpu' or 'cuda', not 'cpu:one'"
        yield f"{command} --device cuda:99", "'cuda:99'"
        if not th.cuda.is_available():
            yield f"{command} --device cuda", "--device is 'cuda', but PyTorch finds no GPU here"
        yield f"{command} --gym-packages ''", "--gym-packages ''"
        yield f"{command} --gym-packages no_module", "--gym-packages no_module: No module named 'no_module'"
        yield f"{command} --gym-packages ../mine.py", "--gym-packages '../mine.py'"
    for option in ("-params", "--env-kwargs", "--eval-env-kwargs"):
        yield f"{TRAIN} {option} gamma", f"{option} gamma: invalid syntax. Write key:value"
        yield f"{TRAIN} {option} gamma:high", f"{option} gamma:high: name 'high' is not defined. Write key:value"
        yield f"{TRAIN} {option}", f"{option}"
    for option, what in (
        ("callback:'no.Module'", "ModuleNotFoundError: No module named 'no'"),
        ("env_wrapper:'no.Module'", "ModuleNotFoundError: No module named 'no'"),
        ("learning_rate:'lin_fast'", "could not convert string to float: 'fast'"),
        ("normalize:'dict(norm_obs'", "SyntaxError"),
        ("policy_kwargs:'dict(num_layers'", "SyntaxError"),
        ("noise_type:'loud'", "-params: unknown noise_type 'loud': known are 'normal'"),
        ("noise_type:'normal'", "-params: noise_std must be a finite number, not None."),
        ("monitor_kwargs:[1]", "-params: monitor_kwargs must map names to values (a dict), not [1]."),
        ("monitor_kwargs:dict(reset_keywords=())", "Unknown key of monitor_kwargs 'reset_keywords': did you mean"),
        ("normalize:'dict(norm_rewards=False)'", "Unknown key of normalize 'norm_rewards': did you mean 'norm_reward'"),
        ("normalize:dict(norm_rewards=False)", "Unknown key of normalize 'norm_rewards': did you mean 'norm_reward'"),
        ("env_kwargs:'dict(horizon=3)'", "-params: env_kwargs must map names to values"),
    ):
        yield f"{TRAIN} -params {shlex.quote(option)}", what
    yield f"{TRAIN} --trial-id 1", "--trial-id needs the --storage and the --study-name"
    yield f"{TRAIN} --trial-id 1 --storage no.log --study-name mine", "no trial 1 of a study 'mine' in no.log"
    yield f"{TRAIN} --optimize --storage file", "--storage file is neither a file that ends in .log nor the URL"
    yield f"{TRAIN} --optimize --storage sqlit:///x.db", "--storage sqlit:///x.db is neither"
    for command in ("demo 3", "table params MT10", "table results logs more", f"{TRAIN} more"):
        last = command.split()[-1]
        yield command, f"takes no '{last}' there"
    yield f"report {RUN} more", "more is no run of sb3-softmod train"


def places() -> Iterator[tuple[str, str]]:
    """Folders and files that cannot be written, found before any work."""
    for command, options in (
        ("demo --steps 1 --episodes 1", ("--out",)),
        ("plot curves logs", ("--out",)),
        ("plot profiles logs", ("--out",)),
        (f"plot routing {RUN}", ("--out",)),
        (TRAIN, ("-f", "-tb", "--optimize --optimization-log-path")),
    ):
        for option in options:
            yield f"{command} {option} file", "file"
            yield f"{command} {option} file/below", "file/below"
    yield f"{TRAIN} --optimize --storage file/study.log", "file"
    yield f"report {RUN} --out file/report.html", "file"
    yield f"report {RUN} --out .", "Cannot write .: it is a folder."
    yield f"export {RUN} --out file/policy.pt", "file"
    yield f"hub {RUN} --out file", "file"
    yield f"hub {RUN} --upload mine", "is called 'you/name', not 'mine'"
    yield f"export {RUN} --out policy.h5", "ends in .onnx (ONNX) or .pt (TorchScript)"


def runs() -> Iterator[tuple[str, str]]:
    """Runs, models and files that are not there."""
    for command in ("table results", "table capacity", "plot curves", "plot profiles"):
        for logs in ("nothing", "file"):
            yield f"{command} {logs}", f"There is no folder {logs}."
    for command in ("table capacity", "plot curves", "plot profiles"):
        yield f"{command} logs --env MT50-Fixed", "run on MT50-Fixed"
    for command in ("plot routing", "evaluate", "report", "export", "hub"):
        yield f"{command} nothing", "nothing is no run of sb3-softmod train"
        yield f"{command} logs", "logs is no run of sb3-softmod train"
        yield f"{command} file", "Cannot read file/run.json"
        yield command, "the following arguments are required: run"
    yield "mixture nothing --task push-v3", "nothing is no run of sb3-softmod train"
    yield f"mixture {RUN}", "the following arguments are required: --task"
    yield f"mixture {RUN} --task push-v3", "holds no MT10-Fixed.zip"
    for command in ("plot routing", "evaluate", "export"):
        yield f"{command} {RUN}", "holds no MT10-Fixed.zip"
        yield f"{command} {RUN} --best", "holds no best_model.zip"
    yield ENJOY, "logs/softmod_deep folder was not found. Runs in logs: logs/mt_sac/MT10-Fixed_0."
    yield f"{ENJOY} -f nothing", "Runs in nothing: none."
    yield "enjoy --env MT3", "the following arguments are required: --algo"
    yield "enjoy --algo mt_sac", "the following arguments are required: --env"
    yield "enjoy --pretrained nothing", "There is no pretrained model 'nothing':"
    yield "enjoy --pretrained nothing --algo mt_sac", "--pretrained says method and tasks: leave out --algo"
    yield "enjoy --pretrained nothing --load-best", "not allowed with argument"
    yield f"{TRAIN} --minutes 1", "--minutes says how long to train: leave out the number of steps"
    for minutes, wrong in (("0", "minutes must be positive"), ("1 1", "must differ"), ("nan", "a finite number")):
        yield f"train --algo mt_sac --env MT3 --minutes {minutes}", wrong
    yield "train --algo mt_sac --env MT3 --minutes 1 -params n_timesteps:9", "leave out the number of steps"
    yield "train --algo mt_sac --env MT3 --minutes 1 -optimize", "--minutes is for a training"
    yield "train --algo sac --env Pendulum-v1 --minutes 1", "--minutes is for the methods of this package"
    yield f"evaluate {RUN} --minutes 7", "holds no model_7min.zip (sb3-softmod train --minutes), but none of others."
    yield "train --env MT3", "--algo is missing"
    yield "train --algo mt_sac", "--env is missing"
    yield f"train --resume {RUN}", "is finished: there is nothing to resume."
    yield "train --resume nothing", "Cannot read nothing/run.json"
    yield "train --resume file", "Cannot read file/run.json"
    yield "train --resume", "--resume: expected one argument"
    yield f"{TRAIN} -i nothing.zip", "There is no model 'nothing.zip' to go on with"
    yield f"{TRAIN} -i logs", "There is no model 'logs' to go on with"
    for command in ("table", "plot"):
        yield command, f"(see sb3-softmod {command} --help)"


def files() -> Iterator[BadInput]:
    """Files that are not what they should be."""
    for name, content, what in (
        ("empty.yml", "", "empty.yml: the file must be a mapping"),
        ("list.yml", "- a\n- b\n", "list.yml, line 1: the file must be a mapping"),
        ("null.yml", "null\n", "null.yml, line 1: the file must be a mapping"),
        ("broken.yml", "MT3: [\n", "in broken.yml, line 2, column 1"),
        ("tab.yml", "MT3:\n\tgamma: 1\n", "in tab.yml, line 2, column 1"),
        ("nul.yml", "a: \0\n", "in nul.yml, position 3"),
        ("other.yml", "MT10-Fixed: {gamma: 0.9}\n", "Hyperparameters not found for softmod_deep-MT3 in other.yml"),
        ("steps.yml", "MT3: {n_timesteps: 0}\n", "steps.yml: MT3: n_timesteps must be at least 1, not 0."),
        ("no_steps.yml", "MT3: {n_timesteps: null}\n", "no_steps.yml: MT3: n_timesteps must be a finite number"),
        ("stack.yml", "MT3: {frame_stack: two}\n", "stack.yml: MT3: frame_stack must be an integer, not 'two'."),
        ("normal.yml", "MT3: {n_timesteps: 9, normalize: yess}\n", "normal.yml (and -params) for MT3 cannot be used"),
        ("wrapped.yml", "MT3: {n_timesteps: 9, vec_env_wrapper: a.B}\n", "wrapped.yml (and -params) for MT3 cannot"),
        ("nothing.py", "x = 1\n", "nothing.py (and -params) for MT3 cannot be used: KeyError: 'hyperparams'"),
        ("raises.py", "1 / 0\n", "raises.py (and -params) for MT3 cannot be used: ZeroDivisionError"),
        ("mine.txt", "MT3: {}\n", "ends in .yml, .yaml or .py, not as mine.txt does."),
    ):
        line = f"{TRAIN} --conf-file {name}"
        yield BadInput("command lines", line, partial(call, line), what, partial(_write, name, content))
    for changes in (
        dict(arguments="train --algo mt_sac"),
        dict(arguments=[3]),
        dict(arguments=["--algo", "mt_sac"], seed=None),
    ):
        line = f"train --resume {RUN}"
        yield BadInput(
            "command lines",
            f"{line}, {json.dumps(changes)}",
            partial(call, line),
            f"{RUN}/run.json is broken: it says arguments",
            partial(_run_with, {"status": "stopped", **changes}),
        )


def _write(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)


def _run_with(changes: dict[str, object], folder: Path) -> None:
    make(folder)
    path = folder / RUN / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

"""Every file of hyperparameters that ships with the package, and what is refused in others."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from every_method import EVERY_METHOD
from point_mass import make_point_mass_env

from sb3_softmod import ConfigurationError, MultiTaskSAC
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import TASK_SETS
from sb3_softmod.methods import METHODS, join_kwargs
from sb3_softmod.zoo.configs import block_of, complete, find_config, load_config, unchanged

ROOT = Path(__file__).parents[2]


@cache
def shipped(file: str) -> dict[str, Any]:
    return load_config(find_config(file), MultiTaskSAC)


def hyperparams_of(file: str, algo: str, env: str) -> dict[str, Any]:
    config = deepcopy(shipped(file))
    return complete(block_of(config, env), METHODS[algo], TASK_SETS[env], config)


@pytest.mark.parametrize("algo", METHODS)
@pytest.mark.parametrize("file", ["paper", "laptop", "laptop_mse"])
def test_every_file_is_complete(file: str, algo: str) -> None:
    """Each method has settings for each set, which fit its number of tasks."""
    for env, task_set in TASK_SETS.items():
        if task_set.suite == "dm_control" and find_spec("dm_control") is None:
            continue
        num_tasks = len(task_names(task_set))
        found = hyperparams_of(file, algo, env)
        assert found["n_timesteps"] >= 100_000 * num_tasks or file != "paper"
        assert found["n_envs"] % num_tasks == 0
        samples = {"paper": 128, "laptop": 32, "laptop_mse": 64}[file] if num_tasks > 1 else 128
        assert found["batch_size"] == num_tasks * samples
        assert found["policy"] == METHODS[algo].policy
        assert join_kwargs(found["policy_kwargs"], METHODS[algo].policy_kwargs) == found["policy_kwargs"]


@pytest.mark.parametrize("algo", EVERY_METHOD)
@pytest.mark.parametrize(
    ("file", "env"),
    [
        ("paper", "MT10-Fixed"),
        ("laptop", "MT3"),
        pytest.param("laptop", "MT50-Conditioned", marks=pytest.mark.slow),
    ],
)
def test_every_method_is_built(file: str, env: str, algo: str) -> None:
    """With all of its settings, for as many tasks; point masses stand for the robot."""
    num_tasks = len(task_names(TASK_SETS[env]))
    found = hyperparams_of(file, algo, env)
    for name in ("n_timesteps", "n_envs", "normalize", "num_threads"):
        found.pop(name, None)
    model = MultiTaskSAC(env=make_point_mass_env(num_tasks), **{**found, "buffer_size": num_tasks})
    assert model.num_tasks == num_tasks
    assert type(model.policy).__name__ == METHODS[algo].policy


@pytest.mark.parametrize("env", ["MT3", "MT10-Conditioned", "MT50-Fixed"])
@pytest.mark.parametrize("file", ["paper", "laptop", "laptop_mse"])
def test_no_two_methods_are_the_same(file: str, env: str) -> None:
    """A file that is meant for all of them leaves each what it is, or a comparison would have one method twice."""
    found = {algo: hyperparams_of(file, algo, env) for algo in METHODS}
    sizes = ("shallow", "deep") if file == "laptop" else ()  # whose critics are those of softmod_*_categorical
    twice = [(f"softmod_{size}", f"softmod_{size}_categorical") for size in sizes]
    assert [pair for pair in combinations(METHODS, 2) if found[pair[0]] == found[pair[1]]] == twice


def test_networks_of_the_laptop() -> None:
    """Small, but what defines a method stays."""
    adamw = dict(weight_decay=1e-4, decoupled_weight_decay=True)
    assert hyperparams_of("laptop", "softmod_deep", "MT3")["policy_kwargs"] == dict(
        preset="deep",
        embedding_dim=128,
        module_dim=128,
        critic_options=dict(normalization="layer"),
        optimizer_kwargs=adamw,
    )
    assert hyperparams_of("laptop", "mt_sac", "MT3")["policy_kwargs"] == dict(
        net_arch=[200] * 3, critic_options=dict(net_arch=[256] * 3, normalization="layer"), optimizer_kwargs=adamw
    )
    assert hyperparams_of("laptop", "mt_mh_sac_4", "MT3")["policy_kwargs"] == dict(
        net_arch=[400] * 4, critic_options=dict(normalization="layer"), optimizer_kwargs=adamw
    )
    assert hyperparams_of("laptop", "brc", "MT3")["policy_kwargs"]["critic_options"] == dict(width=256, num_blocks=2)
    assert hyperparams_of("paper", "brc", "MT10-Fixed")["policy_kwargs"]["critic_options"]["width"] == 4096
    assert hyperparams_of("laptop_mse", "mt_sac", "MT3")["policy_kwargs"] == dict(net_arch=[200] * 3)


def test_what_stands_behind_what(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(
        "MT3:\n  n_timesteps: 100\n  policy_kwargs: {num_modules: 3, module_dim: 32}\n  loss_weighting: uniform\n"
        "policies:\n  SoftModPolicy: {num_modules: 6, embedding_dim: 16}\n"
    )
    config = load_config(str(file), MultiTaskSAC)
    given = {**block_of(config, "MT3"), "policy_kwargs": dict(module_dim=8)}  # as from the command line
    here = (TASK_SETS["MT3"], config)
    found = complete(given, METHODS["softmod_deep"], *here)
    assert found["policy_kwargs"] == dict(embedding_dim=16, preset="deep", num_modules=3, module_dim=8)
    assert found["loss_weighting"] == "uniform"
    # What makes a method what it is: only the command line replaces it.
    assert complete(given, METHODS["mt_sac_famo"], *here)["loss_weighting"] == "famo"
    assert complete(given, METHODS["mt_sac_famo"], *here, ["loss_weighting"])["loss_weighting"] == "uniform"
    assert complete(given, METHODS["mt_mh_sac_balance"], *here)["loss_weighting"] == "alpha"
    # Python code, as RL Zoo's files have it.
    found = complete({**given, "policy_kwargs": "dict(num_layers=1 + 2)"}, METHODS["softmod_deep"], *here)
    assert found["policy_kwargs"] == dict(embedding_dim=16, preset="deep", num_modules=3, module_dim=32, num_layers=3)
    # A policy of somebody else's has nothing of the method's.
    found = complete({**given, "policy": "MlpPolicy"}, METHODS["softmod_deep"], *here)
    assert "preset" not in found["policy_kwargs"]


def test_python_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or module of RL Zoo's kind is read whole, so that what it says is joined too."""
    text = "hyperparams = dict(MT3=dict(n_timesteps=9), policies=dict(SoftModPolicy=dict(module_dim=8)))"
    (tmp_path / "settings_in_code.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (str(tmp_path / "settings_in_code.py"), "settings_in_code"):
        config = load_config(find_config(name), MultiTaskSAC)
        found = complete(block_of(config, "MT3"), METHODS["softmod_deep"], TASK_SETS["MT3"], config)
        assert found["n_timesteps"] == 9
        assert found["policy_kwargs"] == dict(preset="deep", module_dim=8)
    with unchanged("settings_in_code"):  # which RL Zoo changes in place
        import_module("settings_in_code").hyperparams["MT3"]["n_timesteps"] = 1
    assert load_config(find_config("settings_in_code"), MultiTaskSAC)["MT3"]["n_timesteps"] == 9
    (tmp_path / "points.py").write_text("raise RuntimeError('of another program')")
    with unchanged("points.yml"):  # no module yml of the program beside it
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MT3:\n  learning_rat: 1\n", "line 2: unknown key 'learning_rat' of MT3: did you mean 'learning_rate'"),
        ("MT10-Fixd:\n  gamma: 1\n", "line 1: unknown key 'MT10-Fixd' of the file: did you mean 'MT10-Fixed'"),
        ("a: &a\n  gamma: 1\n", "line 1: unknown key 'a' of the file"),
        (
            "default:\n  <<: &base\n    gama: 0.9\n  tau: 0.1\n",
            "line 3: unknown key 'gama' of default: did you mean 'gamma'",
        ),
        (
            "default:\n  env_kwargs:\n    goal: fixed\n",
            "line 3: unknown key 'goal' of env_kwargs: did you mean 'goals'",
        ),
        ("MT3:\n  policy_kwargs: {module_dm: 3}\n", "line 2: unknown key 'module_dm' of policy_kwargs: did you mean"),
        ("MT3:\n  normalize:\n    norm_rewards: false\n", "line 3: unknown key 'norm_rewards' of normalize: did you"),
        (
            "MT3:\n  <<: &base\n    normalize:\n      norm_rewrd: false\n",
            "line 4: unknown key 'norm_rewrd' of normalize: did you mean 'norm_reward'",
        ),
        ("policies:\n  SoftModPolic: {}\n", "line 2: unknown key 'SoftModPolic' of policies: did you mean 'SoftModP"),
        ("policies:\n  MTMlpPolicy: {num_modules: 2}\n", "line 2: unknown key 'num_modules' of MTMlpPolicy"),
        ("MT3:\n  gamma: 0.9\n  gamma: 0.8\n", "line 3: the key 'gamma' of MT3 is there twice."),
        ("MT3:\n  seed: 3\n", "line 2: unknown key 'seed' of MT3"),
        ("MT3:\n  num_threads: quarter\n", "MT3: num_threads must be a number or 'half', of the cores; not 'quarter'."),
        ("MT3:\n  num_threads: 0\n", "MT3: num_threads must be"),
        ("MT3: 4\n", "line 1: MT3 must be a mapping (key: value)."),
        ("", "the file must be a mapping (key: value)."),
        ("MT3: [\n", " is no YAML: "),
    ],
)
def test_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_config(str(file), MultiTaskSAC)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_nobody_says_how_long(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("default:\n  gamma: 0.9\n")
    config = load_config(str(file), MultiTaskSAC)
    with pytest.raises(ConfigurationError, match="how long to train on MT3: write n_timesteps into the file"):
        complete(block_of(config, "MT3"), METHODS["mt_sac"], TASK_SETS["MT3"], config)
    found = complete(block_of(config, "MT10-Fixed"), METHODS["mt_sac"], TASK_SETS["MT10-Fixed"], config)
    assert found["n_timesteps"] == 20_000_000  # the method says it


def test_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text("{}")
    assert find_config("mine.yml") == "mine.yml"
    assert find_config(None) == find_config("paper")
    assert yaml.safe_load(Path(find_config("laptop")).read_text())["MT3"]["n_envs"] == 9
    Path("my_settings.py").write_text("hyperparams = {}")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_config("my_settings") == "my_settings"  # RL Zoo imports it
    for name in ("yours.yml", "folder/yours.yml", "no.module", "../up"):
        with pytest.raises(ConfigurationError, match=f"no file of hyperparameters '{name}'"):
            find_config(name)


def test_the_wheel_has_every_package() -> None:
    """The packages are listed by hand, because zoo_configs/ lies elsewhere."""
    block = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    listed = re.findall(r'"(.*?)"', block[1])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "sb3_softmod").rglob("__init__.py")}
    assert set(listed) == found | {"sb3_softmod.zoo_configs"}
    # Found by the import system from anywhere, as installed.
    code = "from sb3_softmod.zoo.configs import find_config; print(find_config('laptop'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert Path(out.stdout.strip()).read_text() == (ROOT / "zoo_configs" / "laptop.yml").read_text()

"""What ``load`` and ``resume`` are passed counts, and is told from a file that is broken."""

from __future__ import annotations

import json
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_loading
import numpy as np
import pytest
import torch as th
from bad_inputs import BadInput
from point_mass import make_point_mass_env
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

from sb3_softmod import (
    ConfigurationError,
    FileError,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    SoftModSAC,
    make_metaworld_env,
)
from sb3_softmod.common.checks import arguments_of
from sb3_softmod.policies import MTMlpPolicy
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback

M = 2
SMALL: dict[str, Any] = dict(
    batch_size=2 * M, learning_starts=2 * M, buffer_size=100, seed=0, device="cpu", policy_kwargs=dict(net_arch=[4])
)


def make_model(cls: type[MultiTaskSAC] = SoftModSAC, **kwargs: Any) -> MultiTaskSAC:
    return cls("MTMlpPolicy", make_point_mass_env(M), **{**SMALL, **kwargs})


def temperatures(model: MultiTaskSAC) -> tuple[bool, list[float]]:
    """Whether they are learned, and what they are."""
    if model.ent_coef_optimizer is None:
        return False, model.ent_coef_tensor.tolist()
    assert model.log_ent_coef is not None
    assert model.ent_coef_optimizer.param_groups[0]["params"][0] is model.log_ent_coef
    return True, model.log_ent_coef.exp().tolist()


# ------------------------------------------------------------------------------------------------ temperatures

LOADERS: dict[str, Callable[..., MultiTaskSAC]] = {
    "load": lambda path, ent_coef: SoftModSAC.load(path, make_point_mass_env(M), ent_coef=ent_coef),
    "custom_objects": lambda path, ent_coef: SoftModSAC.load(path, custom_objects={"ent_coef": ent_coef}),
    "safe": lambda path, ent_coef: SoftModSAC.load(
        path, make_point_mass_env(M), safe=True, policy="MTMlpPolicy", ent_coef=ent_coef
    ),
}
FIXED: list[tuple[Any, list[float]]] = [(0.5, [0.5, 0.5]), ([0.2, 0.3], [0.2, 0.3]), (np.array([0.2, 0.3]), [0.2, 0.3])]
LEARNED = [("auto", [1.0, 1.0]), ("auto_0.25", [0.25, 0.25])]


@pytest.mark.parametrize("how", LOADERS)
@pytest.mark.parametrize("saved", [0.1, [0.1, 0.4], "auto", "auto_0.1"])
def test_another_ent_coef_begins_anew(how: str, saved: Any, tmp_path: Path) -> None:
    model = make_model(ent_coef=saved).learn(6 * M)
    model.save(tmp_path / "model")
    for given, values in FIXED + LEARNED:
        if isinstance(given, str) and given == saved:
            continue
        loaded = LOADERS[how](tmp_path / "model", given)
        learned, found = temperatures(loaded)
        assert (learned, found) == (isinstance(given, str), pytest.approx(values))
        if learned:
            assert loaded.ent_coef_optimizer is not None
            assert not loaded.ent_coef_optimizer.state
        for own, kept in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
            assert th.equal(own, kept)
        if loaded.get_env() is None:
            loaded.set_env(make_point_mass_env(M))
        loaded.learn(6 * M, reset_num_timesteps=False)
        moved = temperatures(loaded)[1] != found
        assert moved is learned


@pytest.mark.parametrize("how", LOADERS)
@pytest.mark.parametrize(
    ("saved", "same"), [("auto", "auto"), ("auto_0.5", "auto_0.50"), (0.1, [0.1, 0.1]), ([0.1, 0.4], (0.1, 0.4))]
)
def test_the_ent_coef_of_the_file_goes_on(how: str, saved: Any, same: Any, tmp_path: Path) -> None:
    model = make_model(ent_coef=saved).learn(10 * M)
    model.save(tmp_path / "model")
    loaded = LOADERS[how](tmp_path / "model", same)
    assert temperatures(loaded) == temperatures(model)
    if model.ent_coef_optimizer is not None:
        assert loaded.ent_coef_optimizer is not None
        ours, theirs = (m.ent_coef_optimizer.state_dict()["state"][0] for m in (loaded, model))  # type: ignore[union-attr]
        assert ours["step"] == theirs["step"] == model._n_updates
        assert th.equal(ours["exp_avg"], theirs["exp_avg"])


@pytest.mark.parametrize(("saved", "given"), [("auto", 0.5), (0.5, "auto_0.1")])
def test_another_ent_coef_for_a_resumed_run(saved: Any, given: Any, tmp_path: Path) -> None:
    make_model(ent_coef=saved).learn(6 * M, CheckpointCallback(tmp_path, save_freq=5))
    resumed = SoftModSAC.resume(tmp_path, make_point_mass_env(M), ent_coef=given)
    learned, found = temperatures(resumed)
    assert (learned, found) == (given != 0.5, pytest.approx([0.5 if given == 0.5 else 0.1] * M))
    resumed.learn(10 * M, reset_num_timesteps=False)
    assert (temperatures(resumed)[1] != found) is learned


# ------------------------------------------------------------------------------------------------ all arguments

#: Another value than :func:`make_model` gives, of every argument that ``load`` has no own parameter for; the same of
#: those below, which have one that fits alone, or come with others.
SAME = {"replay_buffer_kwargs", "loss_weighting_kwargs", "critic", "num_tasks", "use_sde", "policy_kwargs"}
OTHER: dict[str, Any] = dict(
    learning_rate=0.5,
    buffer_size=50,
    learning_starts=7,
    batch_size=4 * M,
    tau=0.5,
    gamma=0.5,
    train_freq=(3, "step"),
    gradient_steps=5,
    action_noise=NormalActionNoise(np.zeros(2), np.ones(2)),
    replay_buffer_class=NStepReplayBuffer,
    replay_buffer_kwargs={},
    n_steps=3,
    ent_coef=0.5,
    target_update_interval=3,
    target_entropy=-7.0,
    loss_weighting="log_alpha",
    loss_weighting_kwargs={},
    max_grad_norm=0.5,
    gradient_surgery="pcgrad",
    gradient_surgery_kwargs={},
    reward_scaling="per-task",
    critic="mse",
    num_atoms=11,
    v_min=-5.0,
    v_max=5.0,
    critic_target="mean",
    policy_delay=2,
    on_nonfinite="skip",
    num_tasks=M,
    overlap=True,
    precision="bf16",
    compile=True,
    cuda_graphs=False,
    buffer_device="cpu",
    use_sde=False,
    sde_sample_freq=4,
    use_sde_at_warmup=True,
    policy_at_warmup=True,
    stats_window_size=3,
    tensorboard_log="boards",
    policy_kwargs=dict(net_arch=[4]),
    verbose=1,
    seed=5,
)
DIFFERENT = ("episode_statistics", "ep_info_buffer", "ep_success_buffer", "action_noise", "lr_schedule", "policy")


def described(model: MultiTaskSAC) -> dict[str, Any]:
    plain = (bool, int, float, str, type, tuple, dict, list)
    found = {name: value for name, value in vars(model).items() if isinstance(value, plain) or value is None}
    return {
        **{name: value for name, value in found.items() if name not in DIFFERENT},
        "rate": model.lr_schedule(1),
        "noise": repr(model.action_noise),
        "windows": [episodes.maxlen for episodes in model.episode_statistics._episodes],
        "buffer": (type(model.replay_buffer), model.replay_buffer.buffer_size),  # type: ignore[union-attr]
        "temperatures": temperatures(model),
    }


def test_every_argument_is_known_here() -> None:
    names = set(arguments_of(SoftModSAC)) - {"self", "policy", "env", "device", "_init_setup_model"}
    assert set(OTHER) == names


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", OTHER)
def test_every_argument_counts(name: str, safe: bool, tmp_path: Path) -> None:
    make_model(MultiTaskSAC, train_freq=1).save(tmp_path / "model")
    made = make_model(MultiTaskSAC, **{name: OTHER[name]})
    how: dict[str, Any] = dict(safe=True, policy="MTMlpPolicy", buffer_size=100, seed=0) if safe else {}
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu", **{**how, name: OTHER[name]})
    expected, found = described(made), described(loaded)
    assert (described(make_model(MultiTaskSAC, train_freq=1)) == expected) is (name in SAME)
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "name",
    ["replay_buffer_class", "replay_buffer_kwargs", "loss_weighting_kwargs", "batch_size", "learning_starts"],
)
def test_none_is_the_default(name: str, tmp_path: Path) -> None:
    make_model(MultiTaskSAC).save(tmp_path / "model")
    given: dict[str, Any] = {name: None}
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu", **given)
    assert described(loaded) == described(make_model(MultiTaskSAC, **given))


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("name", "own", "options", "other", "none"),
    [
        ("loss_weighting", "famo", dict(weight_decay=0.1), "gradnorm", {}),
        ("gradient_surgery", "cagrad", dict(c=0.5), "mgda", None),
    ],
)
def test_options_go_with_what_they_are_of(
    name: str, own: str, options: dict[str, Any], other: str, none: Any, safe: bool, tmp_path: Path
) -> None:
    make_model(MultiTaskSAC, **{name: own, f"{name}_kwargs": options}).save(tmp_path / "model")
    how: dict[str, Any] = dict(safe=True, policy="MTMlpPolicy") if safe else {}
    for given, expected in ((own, options), (other, none)):
        loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu", **{**how, name: given})
        assert (getattr(loaded, name), getattr(loaded, f"{name}_kwargs")) == (given, expected)


def test_another_window_keeps_the_last_episodes(tmp_path: Path) -> None:
    model = make_model().learn(101 * M)  # five episodes a task
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", make_point_mass_env(M), stats_window_size=2)
    assert (model.episode_statistics.num_episodes(), loaded.episode_statistics.num_episodes()) == ([5] * M, [2] * M)
    assert loaded.ep_info_buffer is not None
    assert model.ep_info_buffer is not None
    assert list(loaded.ep_info_buffer) == list(model.ep_info_buffer)[-2:]


def test_an_env_by_name_has_the_goals_of_the_training(tmp_path: Path) -> None:
    """Which 50 goals a task has is a matter of the seed; of the file's, unless another is passed."""
    options: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), device="cpu", buffer_size=100)
    MultiTaskSAC("MTMlpPolicy", "reach-v3", seed=3, **options).save(tmp_path / "model")

    def first_observations(**kwargs: Any) -> np.ndarray:
        env = MultiTaskSAC.load(tmp_path / "model", env="reach-v3", device="cpu", **kwargs).get_env()
        assert env is not None
        found = np.stack([np.asarray(env.reset()) for _ in range(2)])
        env.close()
        return found

    env = make_metaworld_env("reach-v3", seed=3, n_workers=0)
    expected = np.stack([np.asarray(env.reset()) for _ in range(2)])
    np.testing.assert_array_equal(first_observations(), expected)
    np.testing.assert_array_equal(first_observations(safe=True, policy="MTMlpPolicy"), expected)
    assert not np.array_equal(first_observations(seed=4), expected)


def test_positional_arguments_of_load_are_those_of_sb3(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu", {"gamma": 0.5}, False, False)
    assert loaded.gamma == 0.5


# --------------------------------------------------------------------------------------- options of the networks


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(net_arch=[4, 3]),
        dict(net_arch=(4, 3)),
        dict(net_arch=[4, 3], optimizer_class=th.optim.SGD),
        dict(net_arch=[4, 3], optimizer_kwargs=dict(betas=(0.5, 0.5))),
        dict(net_arch=[4, 3], num_tasks=M, use_sde=False),
    ],
)
def test_equal_policy_kwargs(kwargs: dict[str, Any], tmp_path: Path) -> None:
    make_model(policy_kwargs=kwargs).save(tmp_path / "model")
    env = make_point_mass_env(M)
    for how in ({}, dict[str, Any](safe=True, policy="MTMlpPolicy")):
        loaded = SoftModSAC.load(tmp_path / "model", env, policy_kwargs=kwargs, use_sde=False, **how)
        assert loaded.policy.optimizer_class is kwargs.get("optimizer_class", th.optim.Adam)


def test_policy_kwargs_of_another_policy_of_sb3(tmp_path: Path) -> None:
    """With gSDE, which SB3 keeps among them."""
    make = dict(policy_kwargs=dict(net_arch=[4]), use_sde=True)
    SoftModSAC("MlpPolicy", make_point_mass_env(M), **{**SMALL, **make}).save(tmp_path / "model")
    assert SoftModSAC.load(tmp_path / "model", make_point_mass_env(M), **make).use_sde  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="use_sde was True"):
        SoftModSAC.load(tmp_path / "model", make_point_mass_env(M), use_sde=False)


# --------------------------------------------------------------------------------------------------- whose fault


@pytest.mark.parametrize("case", list(bad_loading.arguments_of_load()), ids=lambda case: case.text)
def test_a_good_file_is_never_called_broken(case: BadInput, tmp_path: Path) -> None:
    """A script that trains anew where a file cannot be read must not throw it away."""
    case.prepare(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        case.run(tmp_path)
    assert not isinstance(caught.value, OSError)
    assert "broken" not in str(caught.value)


def rewritten(path: Path, **facts: Any) -> None:
    """Write other facts into the file of a model."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["data"] = json.dumps({**json.loads(entries["data"]), **facts}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)


@pytest.mark.parametrize("kwargs", [{}, dict(env=True), dict(env=True, gamma=0.5), dict(custom_objects={"tau": 0.5})])
@pytest.mark.parametrize("fact", [dict(gamma="ten"), dict(policy_kwargs={"net_arch": [5], "num_tasks": 2})])
def test_a_broken_file_is_called_broken_whatever_is_passed(fact: Any, kwargs: Any, tmp_path: Path) -> None:
    make_model().save(tmp_path / "model.zip")
    rewritten(tmp_path / "model.zip", **fact)
    if "env" in kwargs:
        kwargs = {**kwargs, "env": make_point_mass_env(M)}
    if fact.keys() & kwargs.keys():
        assert SoftModSAC.load(tmp_path / "model.zip", **kwargs).gamma == 0.5  # the caller's word counts
        return
    with pytest.raises(FileError, match=r"model\.zip"):
        SoftModSAC.load(tmp_path / "model.zip", **kwargs)


def test_a_file_that_needs_a_module_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("of_the_user")
    exec("class Policy(Base): pass", {"Base": MTMlpPolicy, "__name__": "of_the_user"}, vars(module))
    monkeypatch.setitem(sys.modules, "of_the_user", module)
    model = MultiTaskSAC(vars(module)["Policy"], make_point_mass_env(M), **SMALL)
    model.save(tmp_path / "model.zip")
    MultiTaskSAC.load(tmp_path / "model.zip")
    monkeypatch.delitem(sys.modules, "of_the_user")
    with pytest.raises(ConfigurationError, match=r"model\.zip needs code that is not there: .*of_the_user") as caught:
        MultiTaskSAC.load(tmp_path / "model.zip")
    assert not isinstance(caught.value, OSError)
    found = MultiTaskSAC.load(tmp_path / "model.zip", custom_objects={"policy_class": MTMlpPolicy})
    assert th.equal(next(found.policy.parameters()), next(model.policy.parameters()))


def test_custom_objects_that_the_file_does_not_hold(tmp_path: Path) -> None:
    """A warning, but for the one that RL Zoo passes for every algorithm."""
    make_model().save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftModSAC.load(tmp_path / "model", custom_objects={"clip_range": lambda _: 0.0})
    with pytest.warns(UserWarning, match=r"custom_objects: .*model holds no 'gama': did you mean 'gamma'"):
        assert SoftModSAC.load(tmp_path / "model", custom_objects={"gama": 0.5}).gamma == 0.99


def test_a_buffer_or_statistics_of_others_are_not_broken(tmp_path: Path) -> None:
    make_model().save_replay_buffer(tmp_path / "buffer.pkl")
    other = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(3), device="cpu")
    MultiTaskVecNormalize(make_point_mass_env(M)).save(str(tmp_path / "statistics.pkl"))
    for load, message in (
        (lambda: other.load_replay_buffer(tmp_path / "buffer.pkl"), r"buffer\.pkl does not fit the model"),
        (lambda: MultiTaskVecNormalize.load(str(tmp_path / "statistics.pkl"), make_point_mass_env(3)), "2 tasks"),
        (lambda: MultiTaskVecNormalize.load(str(tmp_path / "statistics.pkl"), bad_loading.others(width=5)), "shape"),
        (lambda: MTMlpPolicy.load(tmp_path / "policy.pkl", device="abacus"), "device must be"),
        (lambda: other.set_parameters(str(tmp_path / "model.zip"), device="abacus"), "device must be"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            load()
        assert not isinstance(caught.value, OSError)


# ------------------------------------------------------------------------------------- buffers, positions, files


def test_options_of_other_replay_buffers(tmp_path: Path) -> None:
    kwargs = dict(n_steps=4, gamma=0.5, handle_timeout_termination=False)
    model = make_model(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=kwargs)
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(tmp_path / "model")
    for each in (model, loaded):
        assert isinstance(each.replay_buffer, NStepReplayBuffer)
        assert (each.replay_buffer.n_steps, each.replay_buffer.gamma) == (4, 0.5)
        assert each.replay_buffer.handle_timeout_termination is False
    model = make_model(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=2))
    buffer = model.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer)
    assert buffer.gamma == model.gamma
    model.gamma = 0.5
    model.learn(10 * M)
    assert buffer.gamma == 0.5
    make_model(replay_buffer_kwargs=dict(handle_timeout_termination=True)).save(tmp_path / "ours")
    assert isinstance(SoftModSAC.load(tmp_path / "ours", replay_buffer_class=ReplayBuffer).replay_buffer, ReplayBuffer)


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """They hold what the model told its buffer."""
    model = make_model()
    model.save(tmp_path / "model.zip")
    rewritten(tmp_path / "model.zip", replay_buffer_kwargs=dict(num_tasks=M, storage_device="cpu"))
    SoftModSAC.load(tmp_path / "model.zip", make_point_mass_env(M)).learn(4 * M)


@pytest.mark.parametrize("cls", [MultiTaskSAC, SoftModSAC])
def test_positional_arguments_are_those_of_sb3(cls: type[MultiTaskSAC]) -> None:
    values: dict[str, Any] = dict(
        learning_rate=0.5,
        buffer_size=50,
        learning_starts=7,
        batch_size=4,
        tau=0.25,
        gamma=0.75,
        train_freq=(3, "step"),
        gradient_steps=5,
        action_noise=NormalActionNoise(np.zeros(2), np.ones(2)),
        replay_buffer_class=ReplayBuffer,
        replay_buffer_kwargs=dict(handle_timeout_termination=False),
    )
    assert arguments_of(SAC)[3 : 3 + len(values)] == list(values)
    for count in range(len(values) + 1):
        given = list(values.items())[:count]
        model = cls("MlpPolicy", make_point_mass_env(M), *(value for _, value in given), device="cpu")
        for name, value in given:
            assert getattr(model, name) == (value if name != "train_freq" else model.train_freq)
    assert model.train_freq.frequency == 3  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="positional"):  # the next are SB3's n_steps and optimize_memory_usage
        cls("MlpPolicy", make_point_mass_env(M), *values.values(), False)  # type: ignore[call-arg]

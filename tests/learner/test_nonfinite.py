"""Losses, gradients and temperatures that are not finite: nothing of them is applied; the error, "skip"."""

from __future__ import annotations

import csv
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch as th
from nonfinite_models import CHANCE, B, M, fails_alike, infected_at, make_model, numbers, same, set_parameter, store
from point_mass import make_point_mass_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_softmod import ConfigurationError, MultiTaskSAC, NonFiniteError
from sb3_softmod.learner.finite_updates import Watch
from sb3_softmod.policies import POLICIES

# ----------------------------------------------------------------- each stage, "raise"


@pytest.mark.parametrize("policy", [*POLICIES, "MlpPolicy", "MTMlpPolicy with pcgrad", "MTMlpPolicy with gradvac"])
def test_an_infinite_reward_stops_before_anything_is_learned_from_it(policy: str, tmp_path: Path) -> None:
    policy, _, surgery = policy.partition(" with ")
    options: dict[str, Any] = dict(policy=policy, gradient_surgery=surgery or None, max_grad_norm=1.0)
    model = make_model(tmp_path, **options)
    model.train(3, B)
    store(model, 1000, [0.0, 0.0, math.inf, 0.0])
    before = numbers(model)
    with pytest.raises(
        NonFiniteError,
        match=r"Gradient step 4 \(environment step 0\): the loss of the critic holds NaN or infinity, for 8 of 8 "
        r"samples of task 'corner-2'\. So do the batch's rewards: look at where .* nothing of the update was applied\. "
        r"The update is in .*nonfinite-4\.pt: model\.replay_dump\(path\) takes it again\.",
    ) as error:
        model.train(5, B)
    assert same(numbers(model), before)
    assert (model._n_updates, model.nonfinite_updates) == (3, 1)
    assert [file.name for file in tmp_path.glob("nonfinite*")] == ["nonfinite-4.pt"]
    other = make_model(**{**options, **CHANCE})
    fails_alike(tmp_path, 4, error, other)
    assert same(dict(other.policy.state_dict()), dict(model.policy.state_dict()))


@pytest.mark.parametrize(
    ("parameter", "options", "tensor"),
    [
        ("actor.network.mlp.layers.0.weight", dict(), "the loss of the temperatures"),
        ("actor.network.mlp.layers.0.weight", dict(ent_coef=0.1), "the loss of the critic"),
        ("actor.network.mlp.layers.0.weight", dict(ent_coef=0.1, critic="categorical"), "the loss of the critic"),
        ("actor.network.mlp.layers.0.weight", dict(critic="categorical"), "the loss of the temperatures"),
        ("critic.network.mlp.layers.0.weight", dict(), "the loss of the critic"),
        ("critic.network.mlp.layers.0.weight", dict(precision="bf16"), "the loss of the critic"),
        ("critic_target.network.mlp.layers.0.weight", dict(), "the loss of the critic"),
    ],
)
def test_a_parameter_that_is_nan(parameter: str, options: dict[str, Any], tensor: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, **options)
    model.train(3, B)
    set_parameter(model, parameter, math.nan)
    before = numbers(model)
    with pytest.raises(
        NonFiniteError,
        match=rf"Gradient step 4 .*: {tensor} holds NaN or infinity, for .*\. The parameter '{parameter}' was not "
        r"finite before: go on from an earlier checkpoint\.",
    ) as error:
        model.train(1, B)
    assert same(numbers(model), before)
    fails_alike(tmp_path, 4, error, make_model(**options, **CHANCE))


def test_a_temperature_that_is_infinite(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    model.train(3, B)
    assert model.log_ent_coef is not None
    model.log_ent_coef.data[1] = 100.0
    before = numbers(model)
    with pytest.raises(NonFiniteError, match="the temperature holds NaN or infinity, for task 'corner-1'") as error:
        model.train(1, B)
    assert same(numbers(model), before)
    fails_alike(tmp_path, 4, error, make_model(**CHANCE))


def test_of_many_tasks_some_are_named(tmp_path: Path) -> None:
    model = make_model(tmp_path, tasks=9)
    model.log_ent_coef.data[2:] = math.nan  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match=r"for task 'corner-2', .* task 'corner-6' and 2 more tasks") as error:
        model.train(1, 9 * 8)
    assert "corner-7" not in str(error.value)


@pytest.mark.parametrize("options", [dict(), dict(policy="MlpPolicy"), dict(gradient_surgery="pcgrad")])
def test_an_exploding_network(options: dict[str, Any], tmp_path: Path) -> None:
    """The critics' step is finite, the actor's loss after it is not: the dump holds the critics after their step."""
    model = make_model(tmp_path, **options)
    model.train(3, B)
    model.lr_schedule = lambda _: 1e30
    before = numbers(model)
    with pytest.raises(
        NonFiniteError,
        match=r"the loss of the actor holds NaN or infinity, for every sample of every task\. A lower learning_rate.* "
        r"may help; on_nonfinite=\"skip\" drops such updates\. From there on nothing of the update was applied; the "
        r"critics have learned from this batch already\.",
    ) as error:
        model.train(1, B)
    assert same(numbers(model, but="critic"), {k: v for k, v in before.items() if not k.startswith("critic.")})
    assert not same(numbers(model), before)
    assert all(value.isfinite().all() for value in numbers(model).values())
    fails_alike(tmp_path, 4, error, make_model(**options, **CHANCE))


@pytest.mark.parametrize(("factor", "how"), [(math.inf, "holds NaN or infinity"), (1e30, "is too large to be squared")])
@pytest.mark.parametrize("module", ["actor", "critic"])
def test_a_gradient_alone(module: str, factor: float, how: str, tmp_path: Path) -> None:
    def make(**kwargs: Any) -> MultiTaskSAC:
        model = make_model(max_grad_norm=1.0, **kwargs)  # clipping would make zeros of large gradients
        getattr(model, module).network.mlp.layers[1].bias.register_hook(lambda gradient: gradient * factor)
        return model

    model = make(folder=tmp_path)
    before = numbers(model, but="critic" if module == "actor" else "nothing")
    with pytest.raises(
        NonFiniteError,
        match=rf"the gradient of '{module}\.network\.mlp\.layers\.1\.bias' {how}, though the loss of every sample is "
        "finite",
    ) as error:
        model.train(1, B)
    if module == "critic":
        assert same(numbers(model), before)
    else:  # the optimizers had no states before
        assert {k: v for k, v in numbers(model).items() if k in before and not th.equal(v, before[k])} == {}
    fails_alike(tmp_path, 1, error, make(**CHANCE))


class Infect(BaseCallback):
    """Breaks the critics after some steps."""

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            set_parameter(self.model, "critic.network.mlp.layers.0.weight", math.inf)  # type: ignore[arg-type]
        return True


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_ends_at_the_step(overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(rows=0, overlap=overlap, learning_starts=10 * M)
    model.set_logger(configure(None, []))
    model.logger.dir = None  # of a logger without a folder
    with pytest.raises(NonFiniteError, match=rf"Gradient step 10 \(environment step 80\).*{tmp_path}/nonfinite-10\.pt"):
        model.learn(400, callback=Infect())


def test_a_model_goes_on_once_it_is_healed(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    model.train(3, B)
    healthy = {name: p.clone() for name, p in model.policy.state_dict().items()}
    set_parameter(model, "critic.network.mlp.layers.0.weight", math.nan)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="Gradient step 4 "):
            model.train(1, B)
    model.policy.load_state_dict(healthy)
    model.train(2, B)
    assert model._n_updates == 5
    assert not same(dict(model.policy.state_dict()), healthy)


@pytest.mark.filterwarnings("ignore:Gradient step")
def test_what_to_do_can_be_told_later(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    model.train(3, B)
    set_parameter(model, "critic.network.mlp.layers.0.weight", math.nan)
    with pytest.raises(NonFiniteError, match="Gradient step 4 "):
        model.train(1, B)
    model.on_nonfinite = "skip"
    model.train(5, B)
    assert model.nonfinite_updates == 6
    model.on_nonfinite = "raise"
    with pytest.raises(NonFiniteError, match="Gradient step 9 "):
        model.train(1, B)


# ------------------------------------------------------------------------------ "skip"


def test_skipping_drops_counts_and_goes_on(tmp_path: Path) -> None:
    model = make_model(tmp_path, on_nonfinite="skip", rows=300)
    store(model, 4, [0.0, 0.0, math.inf, 0.0])
    with pytest.warns(
        UserWarning, match=r"the loss of the critic holds .* of task 'corner-2'.*on_nonfinite=\"skip\" goes"
    ):
        model.train(60, B)
    assert 1 < model.nonfinite_updates < 50
    model.ep_info_buffer = model.ep_success_buffer = []  # type: ignore[assignment]
    model.dump_logs()
    with open(tmp_path / "progress.csv") as file:
        (logged,) = csv.DictReader(file)
    assert int(logged["train/nonfinite_updates"]) == model.nonfinite_updates
    trained = {
        name: float(value) for name, value in logged.items() if re.search("loss|q_value|ent_coef|log_prob", name)
    }
    assert len(trained) == 7 * (1 + M)
    assert all(map(math.isfinite, trained.values()))
    assert not list(tmp_path.glob("*.pt"))

    before = numbers(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the first one was said
        model.train(30, B)
    after = numbers(model)
    assert not any(th.equal(value, before[name]) for name, value in after.items() if value.dim())
    assert all(value.isfinite().all() for value in after.values())
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", device="cpu")
    assert (loaded.on_nonfinite, loaded.nonfinite_updates) == ("skip", model.nonfinite_updates)


@pytest.mark.parametrize("stage", ["temperatures", "critic"])
def test_a_skipped_update_changes_nothing(stage: str) -> None:
    model = make_model(on_nonfinite="skip")
    before = infected_at(model, 4, stage)
    drawn = th.get_rng_state()
    with pytest.warns(UserWarning, match="task 'corner-1'"):
        model.train(1, B)
    assert same(numbers(model), before)
    after = th.get_rng_state()
    th.set_rng_state(drawn)
    model.train(1, B)  # of this one nothing is said: to find out draws nothing
    assert th.equal(th.get_rng_state(), after)


def test_the_log_counts_nothing_where_all_is_finite(tmp_path: Path) -> None:
    model = make_model(tmp_path, rows=0, learning_starts=40).learn(100)
    assert model.nonfinite_updates == 0
    assert "nonfinite_updates" not in (tmp_path / "progress.csv").read_text()


@pytest.mark.filterwarnings("ignore:Gradient step")
def test_a_hundred_in_a_row_end_the_run(tmp_path: Path) -> None:
    model = make_model(tmp_path, on_nonfinite="skip")
    assert model.log_ent_coef is not None
    temperature = model.log_ent_coef.data.clone()
    model.log_ent_coef.data[3] = math.nan
    model.train(99, B)
    model.log_ent_coef.data.copy_(temperature)
    model.train(1, B)  # the row begins anew
    model.log_ent_coef.data[3] = math.nan
    before = numbers(model)
    with pytest.raises(
        NonFiniteError,
        match=r"Gradient step 200 .* the temperature holds NaN or infinity, for task 'corner-3'.* It was the 100th "
        "dropped update in a row: this run learns nothing any more",
    ):
        model.train(200, B)
    assert model.nonfinite_updates == 199
    assert same(numbers(model), before)
    with pytest.raises(
        NonFiniteError, match=r"Gradient step 200 .* the temperature holds NaN or infinity, for task 'corner-3'"
    ):
        make_model(**CHANCE).replay_dump(tmp_path / "nonfinite-200.pt")


# ------------------------------------------- learners that do not wait for the device


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks every 100 updates, and the device alone decides whether to apply one."""
    monkeypatch.setattr("sb3_softmod.learner.finite_updates.host_decides", lambda *_: False)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("stage", ["temperatures", "critic", "actor"])
@pytest.mark.parametrize("asked_by", ["train", "check_updates", "save", "dump_logs"])
def test_nothing_is_applied_until_the_host_asks(asked_by: str, stage: str, tmp_path: Path) -> None:
    model = make_model(tmp_path)
    before = infected_at(model, 7, stage)
    model.train(1, B)
    if stage == "actor":
        before.update({name: value for name, value in numbers(model).items() if name.startswith("critic.")})
    elif stage == "critic":
        store(model, 1000)  # what follows is finite, and still not applied
    model.train(20, B)  # nobody waits for the device
    assert same(numbers(model), before)  # the target networks too
    ask = getattr(model, asked_by)
    with pytest.raises(NonFiniteError, match=r"Gradient step 7 \(environment step 0\): the .* holds NaN") as error:
        ask(*{"train": (100, B), "save": (tmp_path / "model",)}.get(asked_by, ()))
    where = {"temperatures": "the temperature holds NaN or infinity, for task 'corner-1'"}
    where["critic"] = "the loss of the critic holds NaN or infinity, for 8 of 8 samples of task 'corner-1'"
    where["actor"] = "the loss of the actor holds NaN or infinity, for every sample of every task"
    assert where[stage] in str(error.value)
    assert model.nonfinite_updates == 1
    assert not (tmp_path / "model.zip").exists()
    assert asked_by != "train" or model._n_updates == 99
    assert same(numbers(model), before)
    fails_alike(tmp_path, 7, error, make_model(**CHANCE))


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_the_end_of_learn_asks(tmp_path: Path) -> None:
    model = make_model(tmp_path, rows=0, learning_starts=10 * M)
    with pytest.raises(NonFiniteError, match=r"Gradient step 10 .* The update is in"):
        model.learn(40 * M, callback=Infect(), log_interval=None)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_skipping_without_waiting(tmp_path: Path) -> None:
    model = make_model(tmp_path, on_nonfinite="skip", rows=300)
    store(model, 4, [0.0, 0.0, math.inf, 0.0])
    model.train(60, B)
    assert model.nonfinite_updates == 0
    with pytest.warns(UserWarning, match=r"\d+ of the last 60 updates were not finite\. on_nonfinite=\"skip\" goes on"):
        model.check_updates()
    count = model.nonfinite_updates
    assert 1 < count < 50
    assert all(value.isfinite().all() for value in numbers(model).values())
    at_once = make_model(on_nonfinite="skip", rows=300)
    model.log_ent_coef.data[3] = math.nan  # type: ignore[union-attr]
    before = numbers(model)
    with pytest.raises(NonFiniteError, match=r"Gradient step 160 .* It was the 100th dropped update in a row"):
        model.train(300, B)
    assert same(numbers(model), before)
    assert model.nonfinite_updates == count + 100
    with pytest.raises(
        NonFiniteError, match=r"Gradient step 160 .* the temperature holds NaN or infinity, for task 'corner-3'"
    ):
        at_once.replay_dump(tmp_path / "nonfinite-160.pt")


# ---------------------------------------------------------------------- healthy learners


@pytest.mark.parametrize("options", [dict(), dict(policy="MlpPolicy"), dict(gradient_surgery="pcgrad")])
def test_healthy_updates_are_those_without_the_test(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; where the device decides, the target networks are rounded otherwise."""
    tested = make_model(**options)
    tested.train(50, B)
    with monkeypatch.context() as patch:
        patch.setattr("sb3_softmod.learner.finite_updates.host_decides", lambda *_: False)
        on_device = make_model(**options)
        on_device.train(50, B)
    for name, value in numbers(on_device).items():
        th.testing.assert_close(value, numbers(tested)[name], rtol=1e-4, atol=1e-5, msg=name)
    monkeypatch.setattr(Watch, "test", lambda *_: None)
    plain = make_model(**options)
    plain.train(50, B)
    assert same(numbers(plain), numbers(tested))
    set_parameter(plain, next(name for name, _ in plain.critic.named_parameters(prefix="critic")), math.nan)
    plain.train(1, B)
    assert not all(value.isfinite().all() for value in plain.actor.state_dict().values())  # nothing tested it


def test_files_of_before_the_option(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model", exclude=["on_nonfinite", "nonfinite_updates"])
    loaded = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(M), device="cpu")
    assert (loaded.on_nonfinite, loaded.nonfinite_updates) == ("raise", 0)
    loaded.learn(120 * M)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Unknown on_nonfinite 'skipp': did you mean 'skip'"):
        make_model(on_nonfinite="skipp")
    model = make_model(policy_kwargs=dict(optimizer_kwargs=dict(foreach=False)), precision="fp32")
    model.device, model.cuda_graphs = th.device("cuda"), True  # as if there were one
    with pytest.raises(ConfigurationError, match="cuda_graphs=True needs the fused Adam"):
        model._acceleration()


@pytest.mark.slow
def test_compiled_networks(tmp_path: Path) -> None:
    model = make_model(tmp_path, compile=True)
    model.train(3, B)
    store(model, 1000, [0.0, 0.0, math.inf, 0.0])
    before = numbers(model)
    with pytest.raises(
        NonFiniteError, match=r"loss of the critic holds .* for 8 of 8 samples of task 'corner-2'"
    ) as error:
        model.train(1, B)
    assert same(numbers(model), before)
    fails_alike(tmp_path, 4, error, make_model(compile=True, **CHANCE))
    fails_alike(tmp_path, 4, error, make_model(**CHANCE))

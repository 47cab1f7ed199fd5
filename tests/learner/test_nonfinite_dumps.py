"""The file of a gradient step that failed."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch as th
from nonfinite_models import CHANCE, B, M, fails_alike, make_model, numbers, same, set_parameter, store

from sb3_softmod import ConfigurationError, MultiTaskSAC, NonFiniteError


def test_the_dump_draws_the_actions_of_the_run(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    model.train(3, B)
    # Of the first unit, the weight of an action: whose target is infinite hangs on the sign of the action drawn.
    model.critic_target.network.mlp.layers[0].weight.data[0, 0, 2] = math.inf  # type: ignore[union-attr, index]
    with pytest.raises(NonFiniteError, match=r"for [1-7] of 8 samples of task 'corner-0', ") as error:
        model.train(1, B)
    th.manual_seed(99)
    fails_alike(tmp_path, 4, error, make_model(**CHANCE))


def broken(folder: Path, **kwargs: Any) -> MultiTaskSAC:
    """A model that fails at its next update."""
    model = make_model(folder, **kwargs)
    set_parameter(model, "critic.network.mlp.layers.0.weight", math.inf)
    return model


def test_a_dump_is_plain_data(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = dict(net_arch=[12, 10], optimizer_class=th.optim.AdamW)
    model = broken(tmp_path, policy_kwargs=kwargs)
    with pytest.raises(NonFiniteError):
        model.train(1, B)
    dump = th.load(tmp_path / "nonfinite-1.pt", weights_only=True)  # which runs no code
    assert dump["batch"]["observations"].shape == (B, 2 + M)
    assert dump["batch"]["rewards"].shape == (B, 1)
    assert dump["parameters"].keys() == model.policy.state_dict().keys()
    assert (dump["stage"], dump["gradient_step"], dump["environment_step"]) == ("critic", 1, 0)
    assert dump["settings"]["policy"] == "MTMlpPolicy"
    assert dump["policy_kwargs"]["net_arch"] == [12, 10]
    assert dump["policy_kwargs"]["optimizer_class"] == "<class 'torch.optim.adamw.AdamW'>"
    assert dump["log_ent_coef"].shape == (M,)


def test_the_dump_scales_rewards_as_the_run_did(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(reward_scaling="per-task", rows=1)
    model = make_model(tmp_path, **options)
    store(model, 1000, [1e30] * M)  # too large to be squared, but where returns of that size are known
    assert model.reward_scale is not None
    model.reward_scale.set_largest_returns([1e30, 1e30, 1.0, 1e30])
    with pytest.raises(NonFiniteError, match=r"for 8 of 8 samples of task 'corner-2'\.") as error:
        model.train(1, B)
    fails_alike(tmp_path, 1, error, make_model(**options, **CHANCE))
    for other, has in ((dict(reward_scaling=None), None), (dict(v_max=5.0), "'per-task, to 5'")):
        with pytest.raises(ConfigurationError, match=rf"written with reward_scaling='per-task, to 10', .* has {has}"):
            make_model(**{**options, **other}).replay_dump(tmp_path / "nonfinite-1.pt")


def test_the_dump_weights_tasks_as_the_run_did(tmp_path: Path) -> None:
    model = broken(tmp_path, loss_weighting="success")
    model.episode_statistics.add([{"task_id": 1, "is_success": True, "episode": {"r": 1.0, "l": 1}}])
    with pytest.raises(NonFiniteError) as error:
        model.train(1, B)
    assert th.load(tmp_path / "nonfinite-1.pt", weights_only=True)["success_rates"].tolist() == [0.0, 1.0, 0.0, 0.0]
    again = make_model(loss_weighting="success")
    fails_alike(tmp_path, 1, error, again)
    assert again.success_rates.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_error_comes_even_if_no_dump_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = broken(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        NonFiniteError,
        match=r"the loss of the critic holds .* could not be dumped to .*nonfinite-1\.pt: .*No space left on device",
    ):
        model.train(1, B)
    assert [file.name for file in tmp_path.iterdir()] == ["progress.csv"]
    model.logger.dir = str(tmp_path / "progress.csv" / "folder")
    with pytest.raises(NonFiniteError, match=r"could not be dumped to .*: .*Not a directory"):
        model.train(1, B)


def test_a_dump_needs_a_model_of_its_arguments(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        broken(tmp_path).train(1, B)
    dump = tmp_path / "nonfinite-1.pt"
    for options, message in (
        (dict(gamma=0.9), r"written with gamma=0\.99, the model has 0\.9"),
        (dict(gradient_surgery="pcgrad"), "written with gradient_surgery=None, the model has 'pcgrad'"),
        (dict(policy="MultiHeadPolicy"), "written with policy='MTMlpPolicy', the model has 'MultiHeadPolicy'"),
        (dict(policy_kwargs=dict(net_arch=[12, 11])), "The model has other parameters than"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_model(**options).replay_dump(dump)
    for content in (b"", b"text", dump.read_bytes()[:1000]):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"other\.pt is not the dump of an update"):
            make_model().replay_dump(tmp_path / "other.pt")
    th.save({"batch": {}}, tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match=r"other\.pt is not the dump of an update"):
        make_model().replay_dump(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        make_model().replay_dump(tmp_path / "none.pt")


def test_a_dump_with_finite_numbers_raises_nothing(tmp_path: Path) -> None:
    model = broken(tmp_path)
    with pytest.raises(NonFiniteError):
        model.train(1, B)
    dump = th.load(tmp_path / "nonfinite-1.pt", weights_only=True)
    dump["parameters"]["critic.network.mlp.layers.0.weight"].view(-1)[0] = 0.0
    th.save(dump, tmp_path / "healed.pt")
    before = numbers(model)
    model.replay_dump(tmp_path / "healed.pt")
    model.policy.load_state_dict({n: v for n, v in before.items() if n in model.policy.state_dict()})
    assert same(numbers(model), before)  # the optimizers took no step


def test_a_dump_of_a_step_without_the_actor(tmp_path: Path) -> None:
    model = make_model(tmp_path, policy_delay=2)
    model.train(2, B)
    set_parameter(model, "critic.network.mlp.layers.0.weight", math.inf)
    with pytest.raises(NonFiniteError, match=r"Gradient step 3 .* the loss of the critic") as error:
        model.train(1, B)
    fails_alike(tmp_path, 3, error, make_model(**CHANCE, policy_delay=2))
    with pytest.raises(ConfigurationError, match="written with policy_delay=2, the model has 1"):
        make_model().replay_dump(tmp_path / "nonfinite-3.pt")

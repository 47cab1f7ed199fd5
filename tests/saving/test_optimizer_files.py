"""Optimizers of torch in files: whatever they keep of a parameter, a loaded model steps as the one that was saved."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch as th
from point_mass import make_point_mass_env

from sb3_softmod import ConfigurationError, MultiTaskSAC

M = 2
#: All of torch that a model can be made with; those that it refuses are in bad_loading.py.
OPTIMIZERS = [
    cls
    for cls in vars(th.optim).values()
    if isinstance(cls, type)
    and issubclass(cls, th.optim.Optimizer)
    and cls.__name__ not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
]


def make_model(optimizer: type[th.optim.Optimizer], policy: str = "MTMlpPolicy", **kwargs: Any) -> MultiTaskSAC:
    return MultiTaskSAC(
        policy,
        make_point_mass_env(M),
        batch_size=2 * M,
        learning_starts=2 * M,
        buffer_size=100,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[6, 5], optimizer_class=optimizer, optimizer_kwargs=kwargs),
    )


@pytest.mark.parametrize("policy", ["MTMlpPolicy", "MlpPolicy"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_loaded_model_steps_as_the_one_that_was_saved(
    optimizer: type[th.optim.Optimizer], policy: str, tmp_path: Path
) -> None:
    model = make_model(optimizer, policy).learn(6 * M)
    model.save(tmp_path / "model")
    ways = [
        MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu"),
        make_model(optimizer, policy),
        make_model(optimizer, policy).learn(8 * M),  # with a state of its own
    ]
    for each in ways[1:]:
        each.set_parameters(tmp_path / "model", device="cpu")
        assert each.log_ent_coef is not None
        assert model.log_ent_coef is not None
        each.log_ent_coef.data.copy_(model.log_ent_coef)
    before = [p.clone() for p in model.policy.parameters()]
    for each in (model, *ways):
        each.replay_buffer = deepcopy(model.replay_buffer)
        th.manual_seed(3)
        each.train(gradient_steps=3, batch_size=2 * M)
    after = list(model.policy.parameters())
    assert not all(th.equal(*pair) for pair in zip(before, after, strict=True))
    for each in ways:
        for own, expected in zip(each.policy.parameters(), after, strict=True):
            assert th.equal(own, expected)


def test_the_state_of_another_optimizer_is_still_refused() -> None:
    model = make_model(th.optim.Adafactor).learn(6 * M)
    good = model.get_parameters()
    before = [p.clone() for p in model.policy.parameters()]

    def changed(**tensors: th.Tensor) -> Any:
        other = deepcopy(good["critic.optimizer"])
        index = next(index for index, state in other["state"].items() if "row_var" in state)
        other["state"][index].update(tensors)
        return other

    row = next(state["row_var"] for state in good["critic.optimizer"]["state"].values() if "row_var" in state)
    wide = make_model(th.optim.Adafactor).get_parameters()["critic.optimizer"]
    wide = {**wide, "param_groups": [{**wide["param_groups"][0], "params": [0]}]}
    wrong: list[tuple[MultiTaskSAC, Any]] = [
        (model, changed(row_var=row[..., :1, :])),
        (model, changed(more=th.zeros(3))),
        (model, wide),
        (make_model(th.optim.Adam), good["critic.optimizer"]),
    ]
    for target, state in wrong:
        with pytest.raises(ConfigurationError, match=r"critic\.optimizer is the state of another optimizer"):
            target.set_parameters({"critic.optimizer": state}, exact_match=False, device="cpu")
    assert all(th.equal(*pair) for pair in zip(before, model.policy.parameters(), strict=True))
    model.set_parameters({"critic.optimizer": changed()}, exact_match=False, device="cpu")  # as it was

"""The official variant against numbers of the authors' released network (tests/golden, see README there)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softmod import ConfigurationError, SoftModularNetwork

GOLDEN = Path(__file__).parent / "golden"
FILES = ["policy_shallow", "policy_deep", "policy_without_obs", "critic_shallow"]


class Golden:
    """One file of reference numbers."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"]))
        self.params = self.group("param/")
        self.grads = self.group("grad/")
        state = [self.arrays["obs"]] + ([self.arrays["action"]] if "action" in self.arrays else [])
        self.inputs = th.tensor(np.concatenate(state, 1))
        self.task = th.tensor(self.arrays["onehot"])

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def network(self) -> SoftModularNetwork:
        return SoftModularNetwork.from_official(self.params, condition_on_obs=self.config["condition_on_obs"])


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_output(golden: Golden) -> None:
    out = golden.network()(golden.inputs, golden.task)
    assert out.shape == (1, *golden.arrays["out"].shape)
    np.testing.assert_allclose(out[0].detach().numpy(), golden.arrays["out"], atol=1e-5, rtol=0)


def test_routing_probabilities(golden: Golden) -> None:
    *layers, last = golden.network().routing(golden.inputs, golden.task)
    assert len(layers) == golden.config["num_layers"] - 1
    for index, layer in enumerate(layers):
        np.testing.assert_allclose(layer[0].detach().numpy(), golden.arrays[f"weight_{index}"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(last[0].detach().numpy(), golden.arrays["last_weight"], atol=1e-5, rtol=0)


def test_gradients(golden: Golden) -> None:
    network = golden.network()
    (network(golden.inputs, golden.task)[0] * th.tensor(golden.arrays["cotangent"])).sum().backward()
    holder = copy.deepcopy(network)  # carries the gradients in the place of the parameters, to name them
    with th.no_grad():
        for target, source in zip(holder.parameters(), network.parameters(), strict=True):
            assert source.grad is not None
            target.copy_(source.grad)
    named = holder.to_official()
    assert named.keys() == golden.grads.keys()
    for name, expected in golden.grads.items():
        scale = max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(named[name].numpy() / scale, expected / scale, atol=1e-4, rtol=0, err_msg=name)


def test_round_trip(golden: Golden, tmp_path: Path) -> None:
    there_and_back = golden.network().to_official()
    assert there_and_back.keys() == golden.params.keys()
    for name, value in there_and_back.items():
        np.testing.assert_array_equal(value.numpy(), golden.params[name], err_msg=name)

    th.save(there_and_back, tmp_path / "official.pth")
    again = SoftModularNetwork.from_official(tmp_path / "official.pth", golden.config["condition_on_obs"])
    assert th.equal(again(golden.inputs, golden.task), golden.network()(golden.inputs, golden.task))


@pytest.mark.parametrize(("preset", "parameters"), [("shallow", 691_022), ("deep", 792_444)])
def test_number_of_parameters(preset: Any, parameters: int) -> None:
    network = SoftModularNetwork(39, 8, 10, variant="official", preset=preset)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_wrong_parameters_are_named() -> None:
    params = Golden("policy_shallow").params
    missing = {k: v for k, v in params.items() if k != "gating_weight_last.bias"}
    with pytest.raises(ConfigurationError, match=r"'gating_weight_last\.bias' is missing"):
        SoftModularNetwork.from_official(missing)
    with pytest.raises(ConfigurationError, match=r"no place for: surplus\.weight"):
        SoftModularNetwork.from_official({**params, "surplus.weight": np.zeros(3)})
    with pytest.raises(ConfigurationError, match=r"'module_1_0\.weight' has shape \(8, 9\), expected \(8, 8\)"):
        SoftModularNetwork.from_official({**params, "module_1_0.weight": np.zeros((8, 9))})
    with pytest.raises(ConfigurationError, match=r"'last\.weight' is missing: not the authors'"):
        SoftModularNetwork.from_official({k: v for k, v in params.items() if k != "last.weight"})
    with pytest.raises(ConfigurationError, match="must map the authors' parameter names"):
        SoftModularNetwork.from_official([1, 2])  # type: ignore[arg-type]


def test_paper_variant_has_no_official_parameters() -> None:
    with pytest.raises(ConfigurationError, match="The authors' code has routing_history='all_probabilities'"):
        SoftModularNetwork(5, 2, 3).to_official()

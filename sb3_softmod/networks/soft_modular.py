"""The soft-modular network of Yang et al. 2020 (arXiv 2003.13661), Eqs. 5 to 9, and of the authors' released code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.checks import require_choice, require_flag, require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.networks import official_weights
from sb3_softmod.networks.base import LARGEST, MultiTaskNetwork, require_positive, require_widths
from sb3_softmod.networks.layers import BatchedLinear, BatchedMLP, Init, Normalization, normalize, relu, softmax
from sb3_softmod.networks.mixing import mix

Variant = Literal["paper", "official"]
Preset = Literal["shallow", "deep"]

#: Sizes of the two networks of the paper: L module layers, n modules a layer, module width d.
PRESETS: dict[str, dict[str, Any]] = {
    "shallow": dict(num_layers=2, num_modules=2, module_dim=256),
    "deep": dict(num_layers=4, num_modules=4, module_dim=128),
}

#: What neither of these says, nor the variant.
DEFAULTS: dict[str, Any] = dict(embedding_dim=400, condition_on_obs=True)

#: What the paper's equations and the authors' released code do differently.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": dict(
        num_routing_layers=0,
        routing_history="previous_logits",
        activate_embedding=False,
        module_activation="before_mixing",
        head="sum",
        init="pytorch",
    ),
    "official": dict(
        num_routing_layers=2,
        routing_history="all_probabilities",
        activate_embedding=True,
        module_activation="after_mixing",
        head="routed",
        init="official",
    ),
}


@dataclasses.dataclass(frozen=True)
class SoftModularOptions:
    """Every option of a :class:`SoftModularNetwork`, with nothing left open. The fields are documented there."""

    num_layers: int
    num_modules: int
    module_dim: int
    embedding_dim: int
    state_hidden: tuple[int, ...]
    num_routing_layers: int
    routing_dim: int
    routing_history: Literal["previous_logits", "all_probabilities"]
    activate_embedding: bool
    module_activation: Literal["before_mixing", "after_mixing"]
    head: Literal["sum", "routed"]
    condition_on_obs: bool
    init: Literal["pytorch", "official"]
    normalization: Normalization | None = None

    @classmethod
    def resolve(cls, variant: str, preset: str, given: Mapping[str, Any]) -> SoftModularOptions:
        """Fill what the user left open from the preset and the variant.

        :param variant: a key of :data:`VARIANTS`
        :param preset: a key of :data:`PRESETS`
        :param given: options by name; ``None`` means left open
        :raises ConfigurationError: for an unknown variant, preset or choice, or a size that is none
        """
        for kind, name, known in (("variant", variant, VARIANTS), ("preset", preset, PRESETS)):
            require_choice(kind, name, known)
        options = {**DEFAULTS, **PRESETS[preset], **VARIANTS[variant]}
        options.update({name: value for name, value in given.items() if value is not None})
        for name, hint in get_type_hints(cls).items():
            if hint is bool:
                require_flag(name, options[name])
            elif get_origin(hint) is Literal:
                require_choice(name, options[name], get_args(hint))
        sizes = ("num_layers", "num_modules", "module_dim", "embedding_dim")
        require_positive(**{name: options[name] for name in sizes})
        if options["num_layers"] < 2:
            raise ConfigurationError(
                "num_layers must be at least 2: routing connects one layer of modules to the next."
            )
        depth = options["num_routing_layers"]
        require_integer("num_routing_layers", depth, 0, LARGEST)
        width = options["embedding_dim"]
        options["state_hidden"] = require_widths("state_hidden", options.get("state_hidden", (width,)))
        options.setdefault("routing_dim", 256 if depth else width)
        if depth == 0 and options["routing_dim"] != width:
            raise ConfigurationError(
                f"routing_dim={options['routing_dim']} needs num_routing_layers of at least 1: without them the "
                f"routing input is as wide as the embedding ({width})."
            )
        require_positive(routing_dim=options["routing_dim"])
        return cls(**options)


class SoftModularNetwork(MultiTaskNetwork):
    r"""L layers of n modules, recombined for each task and state by a routing network.

    With f(s) the embedding of the state, h(z) that of the task, and p^l the routing logits of layer l, the
    **paper** variant computes

    .. math::
        e &= f(s) \cdot h(z), \quad p^1 = W_d^1\,\mathrm{ReLU}(e), \quad
        p^{l+1} = W_d^{l+1}\,\mathrm{ReLU}((W_u^l p^l) \cdot e) && \text{(Eqs. 5, 6)} \\
        \hat p^l_{ij} &= \mathrm{softmax}_j(p^l_{ij}) && \text{(Eq. 7)} \\
        g^{l+1}_i &= \sum_j \hat p^l_{ij}\,\mathrm{ReLU}(W^l_j g^l_j), \quad g^1 = f(s) && \text{(Eq. 8)} \\
        \mathrm{out} &= \sum_j W^L_j g^L_j && \text{(Eq. 9)}

    The authors' released code, the **official** variant, differs in the steps that are marked so below.

    :param variant: "paper" or "official"; sets ``num_routing_layers``, ``routing_history``, ``activate_embedding``,
        ``module_activation``, ``head`` and ``init``
    :param preset: "shallow" (L 2, n 2, d 256) or "deep" (L 4, n 4, d 128); sets the three sizes
    :param num_layers: L, at least 2
    :param num_modules: n, modules in a layer
    :param module_dim: d, width of a module
    :param embedding_dim: D, width of f(s) and h(z) (default 400)
    :param state_hidden: widths of the hidden layers of f; default one of width D
    :param num_routing_layers: linear layers between e and the routing, with ReLU before and between them
        (paper 0, official 2)
    :param routing_dim: their width (default 256)
    :param routing_history: what W_u reads: "previous_logits" (Eq. 5) or "all_probabilities", those of all earlier
        layers after their softmax, concatenated (official)
    :param activate_embedding: whether the first module layer reads ReLU(f(s)) (official) or f(s)
    :param module_activation: "before_mixing" (Eq. 8) or "after_mixing": ReLU(sum_j p_ij (W_j g_j)) (official)
    :param head: "sum" (Eq. 9), or "routed": the modules of layer L have width d, a last routing vector mixes them,
        and out = W_last ReLU(sum_j p_j (W_j g_j)) (official)
    :param condition_on_obs: False routes on h(z) alone (the ablation "w/o Obs"; default True)
    :param init: "pytorch", or "official": the authors' initial weights, with near-uniform routing
    :param normalization: "layer": layer normalisation, without learned scale and shift, in f before each ReLU and of
        f(s), and of each module's output: :math:`\mathrm{ReLU}(\mathrm{LN}(W_j g_j))` in Eq. 8
    :param ensemble_size: E; for it and the first three arguments see :class:`.MultiTaskNetwork`
    :raises ConfigurationError: for an unknown name or an impossible size
    """

    capturable = True
    tunable_parts: ClassVar[dict[str, Any]] = dict(
        by_task={"task_encoder.weight": -1},
        words={
            "routing": ("task_encoder", "routing_encoder", "routing_down", "routing_up"),
            "task": ("task_encoder",),
            "heads": ("head",),
        },
    )

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        *,
        variant: Variant = "paper",
        preset: Preset = "shallow",
        num_layers: int | None = None,
        num_modules: int | None = None,
        module_dim: int | None = None,
        embedding_dim: int | None = None,
        state_hidden: Sequence[int] | None = None,
        num_routing_layers: int | None = None,
        routing_dim: int | None = None,
        routing_history: Literal["previous_logits", "all_probabilities"] | None = None,
        activate_embedding: bool | None = None,
        module_activation: Literal["before_mixing", "after_mixing"] | None = None,
        head: Literal["sum", "routed"] | None = None,
        condition_on_obs: bool | None = None,
        init: Literal["pytorch", "official"] | None = None,
        normalization: Normalization | None = None,
        ensemble_size: int = 1,
    ) -> None:
        arguments = dict(locals())  # whose names are those of the options
        super().__init__(input_dim, output_dim, num_tasks, ensemble_size=ensemble_size)
        given = {field.name: arguments[field.name] for field in dataclasses.fields(SoftModularOptions)}
        self.options = options = SoftModularOptions.resolve(variant, preset, given)
        E, L, n, d = (ensemble_size,), options.num_layers, options.num_modules, options.module_dim
        D, R = options.embedding_dim, options.routing_dim
        hidden_init: Init = options.init
        last_init: Init = "small" if options.init == "official" else "pytorch"

        self.state_encoder = BatchedMLP(E, (input_dim, *options.state_hidden, D), hidden_init, options.normalization)
        self.task_encoder = BatchedLinear(E, num_tasks, D, hidden_init)
        self.routing_encoder = nn.ModuleList(
            BatchedLinear(E, D if k == 0 else R, R, hidden_init) for k in range(options.num_routing_layers)
        )

        # W_d of each routing layer, and W_u of each but the first; the routed head adds one of n probabilities.
        routed = options.head == "routed"
        routing_sizes = [n * n] * (L - 1) + [n] * routed
        self.routing_down = nn.ModuleList(BatchedLinear(E, R, size, last_init) for size in routing_sizes)
        history = [n * n if options.routing_history == "previous_logits" else (k + 1) * n * n for k in range(L)]
        self.routing_up = nn.ModuleList(
            BatchedLinear(E, width, R, hidden_init) for width in history[: len(routing_sizes) - 1]
        )

        module_widths = [D] + [d] * (L - 1)
        self.module_layers = nn.ModuleList(
            BatchedLinear((*E, n), width, d, hidden_init) for width in module_widths[: L if routed else L - 1]
        )
        self.head = BatchedLinear(E if routed else (*E, n), d, output_dim, last_init)

    @property
    def last_shared_layer(self) -> nn.Module:
        return self.head

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        embedding = self._embed(inputs)
        return self._forward_modules(embedding, self._route(embedding, task))

    def routing(self, inputs: Tensor, task: Tensor) -> list[Tensor]:
        """The routing probabilities, layer by layer.

        :param inputs: ``[B, input_dim]`` or ``[E, B, input_dim]``
        :param task: ``[B, M]``
        :return: L - 1 tensors ``[E, B, n, n]`` (target module, source module), whose rows sum to 1; with the
            routed head one more, ``[E, B, n]``
        """
        return self._route(self._embed(inputs), task)

    def _embed(self, inputs: Tensor) -> Tensor:
        return normalize(self.state_encoder(inputs), self.options.normalization)

    def _route(self, embedding: Tensor, task: Tensor) -> list[Tensor]:
        n = self.options.num_modules
        e = self.task_encoder(task)
        if self.options.condition_on_obs:
            e = e * embedding
        for layer in self.routing_encoder:
            e = layer(relu(e))

        probabilities: list[Tensor] = []
        context = e  # what the next W_u reads
        for k, down in enumerate(self.routing_down):
            logits = down(relu(self.routing_up[k - 1](context) * e if k else e))
            if k == self.options.num_layers - 1:  # the routed head's vector over the last modules
                probabilities.append(softmax(logits))
                break
            p = softmax(logits.unflatten(-1, (n, n)))
            probabilities.append(p)
            if self.options.routing_history == "previous_logits":
                context = logits
            else:
                context = th.cat([context, p.flatten(-2)], -1) if k else p.flatten(-2)
        return probabilities

    def _forward_modules(self, embedding: Tensor, probabilities: list[Tensor]) -> Tensor:
        relu_first = self.options.module_activation == "before_mixing"
        g = relu(embedding) if self.options.activate_embedding else embedding
        for layer, p in zip(self.module_layers, probabilities, strict=True):
            out = normalize(layer(g), self.options.normalization)  # [E, n, B, d]
            if p.dim() == 3:  # the routed head's vector: [E, B, n]
                return self.head(relu(mix(p.unsqueeze(-2), out)).squeeze(1))
            g = mix(p, relu(out) if relu_first else out)
            if not relu_first:
                g = relu(g)
        return self.head(g).sum(1)

    @classmethod
    def from_official(cls, params: Mapping[str, Any] | str | Path, condition_on_obs: bool = True) -> SoftModularNetwork:
        """Build the official variant from the parameters of the authors' released network.

        :param params: the authors' names to arrays or tensors, or the path of their ``.pth`` state dict (loaded
            with ``weights_only=True``: no code in it runs). All sizes are read from the shapes.
        :param condition_on_obs: how the network was trained; the parameters do not show it
        :return: a network with one member
        :raises ConfigurationError: naming the parameter that is missing, left over or of the wrong shape
        """
        arrays = official_weights.read(params)
        network = cls(**official_weights.infer_sizes(arrays), variant="official", condition_on_obs=condition_on_obs)
        official_weights.load_into(network, arrays)
        return network

    def to_official(self, member: int = 0) -> dict[str, Tensor]:
        """The parameters of one member under the authors' names.

        :param member: which of the E members
        :return: name to tensor (a copy), ready for :func:`torch.save`
        :raises ConfigurationError: if an option makes this network one that the authors' code cannot express
        """
        return official_weights.export(self, member)

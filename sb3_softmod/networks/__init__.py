"""Multi-task networks in plain torch, all of one signature; nothing here knows SB3 or environments."""

from sb3_softmod.networks.adapted import AdaptedNetwork
from sb3_softmod.networks.base import MultiTaskNetwork
from sb3_softmod.networks.bronet import BroNetwork
from sb3_softmod.networks.care import CARENetwork
from sb3_softmod.networks.film import FiLMNetwork
from sb3_softmod.networks.hard_routing import HardRoutingNetwork
from sb3_softmod.networks.layers import BatchedLinear, BatchedMLP
from sb3_softmod.networks.mixture_of_experts import MixtureOfExpertsNetwork
from sb3_softmod.networks.mlp import MlpNetwork
from sb3_softmod.networks.moore import MOORENetwork
from sb3_softmod.networks.multi_head import MultiHeadNetwork
from sb3_softmod.networks.paco import PaCoNetwork
from sb3_softmod.networks.single_task import SingleTaskNetwork
from sb3_softmod.networks.soft_modular import PRESETS, VARIANTS, SoftModularNetwork, SoftModularOptions

__all__ = [
    "PRESETS",
    "VARIANTS",
    "AdaptedNetwork",
    "BatchedLinear",
    "BatchedMLP",
    "BroNetwork",
    "CARENetwork",
    "FiLMNetwork",
    "HardRoutingNetwork",
    "MOORENetwork",
    "MixtureOfExpertsNetwork",
    "MlpNetwork",
    "MultiHeadNetwork",
    "MultiTaskNetwork",
    "PaCoNetwork",
    "SingleTaskNetwork",
    "SoftModularNetwork",
    "SoftModularOptions",
]

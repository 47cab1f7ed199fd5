"""Multi-task networks in plain torch, all of one signature; nothing here knows SB3 or environments."""

from sb3_softmod.networks.base import MultiTaskNetwork
from sb3_softmod.networks.layers import BatchedLinear
from sb3_softmod.networks.soft_modular import PRESETS, VARIANTS, SoftModularNetwork, SoftModularOptions

__all__ = ["PRESETS", "VARIANTS", "BatchedLinear", "MultiTaskNetwork", "SoftModularNetwork", "SoftModularOptions"]

"""The hyperparameters that ship with the package; installed as ``sb3_softmod.zoo_configs``."""

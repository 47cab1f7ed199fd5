"""A trained policy as one file that acts without this package: ONNX, TorchScript. May import policies and envs."""

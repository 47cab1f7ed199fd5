"""Training, playing and tuning with RL Baselines3 Zoo; the only part of the package that imports ``rl_zoo3``.

``python -m sb3_softmod.zoo train`` and ``enjoy`` are ``sb3-softmod train`` and ``enjoy``. Further scripts of rl_zoo3
run there with our methods and envs registered: ``python -m sb3_softmod.zoo all_plots ...``.
"""

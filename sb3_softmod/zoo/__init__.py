"""Training, playing and tuning with RL Baselines3 Zoo; the only part of the package that imports ``rl_zoo3``.

Further scripts of rl_zoo3 run with our methods and envs registered: ``python -m sb3_softmod.zoo all_plots ...``.
"""

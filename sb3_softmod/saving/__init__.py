"""Models, checkpoints and the state of a training as files, read safely. May import all below the algorithm."""

"""The routes of a model: sampled, as they change in training, every picture of them. May import evaluation, below."""

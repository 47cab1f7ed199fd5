"""One gradient step: replay buffer, losses, metrics. May import policies, networks, common; of envs, normalize."""

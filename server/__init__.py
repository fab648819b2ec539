"""The coordinator: the rounds, the checkpoints, the results."""

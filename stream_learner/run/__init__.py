"""What drives a learner: the worker, its start, what it counts, and rebuilding."""

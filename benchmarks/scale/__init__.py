"""Plan and simulation of a run on many ranks."""

"""Read a run from outside, with read rights."""

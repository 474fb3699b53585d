"""What reads a run from outside, with read rights."""

"""Read the status and the releases of a run from another program, with read rights only."""

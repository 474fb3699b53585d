"""Publish checkpoints in numbered steps, and find the last checkpoint again when a worker starts."""

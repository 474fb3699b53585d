"""The checkpoint protocol: its effects, and their mirror, recovery."""

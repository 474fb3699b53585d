"""The checkpoint protocol: publish, and its mirror, recover."""

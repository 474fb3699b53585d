"""Learns an image classifier from a Kafka stream, exactly once, and releases it downstream."""

__version__ = "0.1.0"

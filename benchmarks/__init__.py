"""Benchmarks of the worker and its learner: measurements, their streams, and a reference."""

"""Throughput of the worker: the limit of the machine, the learner in memory, the worker, and programs of others."""

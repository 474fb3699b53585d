"""Batches, the learner and its parts: models, strategies, weighting, memory, evaluation, the release gate."""

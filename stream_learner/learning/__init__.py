"""The learner and its parts: strategies, heads, weighting, memory, evaluation, the release gate."""

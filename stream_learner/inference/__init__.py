"""Predictions of a released network without PyTorch."""

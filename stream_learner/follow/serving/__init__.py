"""Serves a run's releases over HTTP with the Open Inference Protocol, version 2."""

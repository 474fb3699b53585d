"""Serves a run's releases over HTTP and gRPC with the Open Inference Protocol, version 2."""

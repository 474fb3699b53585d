"""Kafka input and output: connections, topics, the input source, transactions, and reading of a run's own topics."""

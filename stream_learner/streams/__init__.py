"""Kafka input and output: connections, topics, the source, the transaction, the checkpoints topic as a journal."""

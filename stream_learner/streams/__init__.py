"""Kafka in and out: the connection, the topics, the source, the transaction, the checkpoints topic as a journal."""

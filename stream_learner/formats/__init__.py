"""From a record's bytes to a sample. No Kafka, no torch."""

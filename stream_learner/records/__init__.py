"""What travels, as types, and the way from bytes to samples. No Kafka, no torch."""

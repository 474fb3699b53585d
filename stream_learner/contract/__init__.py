"""Types that other programs read and write: documents, spans, object keys, signatures. No Kafka, no torch."""

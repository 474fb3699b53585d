"""What others read and write, as types: documents, spans, keys of objects, signatures. No Kafka, no torch."""

"""What operators see: Prometheus metrics, health pages and logs."""

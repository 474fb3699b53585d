"""Views for operators: Prometheus metrics, health pages and logs."""

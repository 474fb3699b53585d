"""Drive a learner: start, worker loop, circuit breaker, rebuild."""

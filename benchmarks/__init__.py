"""What the worker and its learner are worth: measurements, the streams they run on, and a reference."""

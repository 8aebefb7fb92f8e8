"""What MLflow gets to know of a run: an outbox on disk, and the one process that sends it."""

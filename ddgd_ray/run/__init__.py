"""One run on disk: its records, what they mean, and which arm is the best."""

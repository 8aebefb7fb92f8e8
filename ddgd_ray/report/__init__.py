"""Published results to tables and pictures. Reads the run folder and the store: no ray, no torch, no server."""

"""What comes from outside: image folders, ready-made sets, weights, and the fingerprints of all three."""

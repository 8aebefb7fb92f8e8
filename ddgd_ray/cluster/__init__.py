"""The doors to Ray: Tune, Train, data-parallel encoding, nodes and what fits on them."""

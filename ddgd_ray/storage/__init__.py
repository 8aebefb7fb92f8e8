"""Published artifacts: the store, its manifests, leases and commits, on disk and behind URLs."""

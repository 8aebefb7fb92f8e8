"""What several stages share: readers, latents, checkpoints, classifiers."""

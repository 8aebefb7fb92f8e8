"""The mathematics: tensors in, tensors out. No files, no specs, no ray."""

"""What to do: frozen, strict, hashable descriptions. Imports neither torch nor ray."""

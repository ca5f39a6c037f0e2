"""The experiments that need a GPU, in slices of a few minutes."""

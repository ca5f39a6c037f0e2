"""*ssp*: networks with strong-stability-preserving blocks."""

"""*structured*: networks that are 1-Lipschitz by construction."""

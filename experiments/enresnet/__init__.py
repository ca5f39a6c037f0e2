"""*enresnet*: ensembles of noisy ResNets."""

"""Networks that are trained to be proven robust."""

"""`python -m experiments.gpu`: see `run`."""

if __name__ == "__main__":
    import time

    import jax

    # Before anything else is imported: this process leaves the device to those that it starts.
    jax.config.update("jax_platforms", "cpu")

    from .run import main

    main(time.monotonic() - time.process_time())  # imports count

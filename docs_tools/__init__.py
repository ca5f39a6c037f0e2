"""What makes the documentation site from `docs/`, the docstrings and the results: `make docs`."""

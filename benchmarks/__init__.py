"""Speed, side by side in one run: `python -m benchmarks.NAME`."""

import experiments as experiments  # XLA's flags, as experiments have them

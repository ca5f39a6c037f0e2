"""The file that a killed evaluation goes on from."""

import io
from pathlib import Path

import jax
import numpy as np

from .._fingerprint import fingerprint
from .._mesh import agreed
from .._paths import written_whole
from .._warnings import warn

_ANEW = "delete it to start anew, or give another state_path"


class StateError(ValueError):
    """A saved state that is of another evaluation, or cannot be read."""


class SavedState:
    """Named arrays at `path`, of the evaluation whose `parts` have this fingerprint.

    Without a path nothing is kept. Networks of the same fingerprint differ in their `logits` of the
    clean images.
    """

    def __init__(self, path: Path | None, parts: tuple, logits: np.ndarray):
        self.path, self.logits = path, logits
        self.fingerprint = "" if path is None else fingerprint(*parts)

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved; None where nothing was. `StateError` for any other file."""
        if self.path is None or not self.path.exists():
            return None
        arrays = self._read()
        # Another device may round otherwise, and no more.
        atol = 1e-4 * float(np.abs(self.logits[np.isfinite(self.logits)]).max())
        logits, same = arrays.pop("logits"), str(arrays.pop("fingerprint")) == self.fingerprint
        if not (same and np.allclose(logits, self.logits, rtol=1e-3, atol=atol)):
            raise StateError(
                f"{self.path} is the state of another evaluation (other attack, network, images, "
                f"ball or key); {_ANEW}"
            )
        return arrays

    def _read(self) -> dict[str, np.ndarray]:
        assert self.path is not None
        try:
            # Read whole before it is parsed: NumPy does not close a file of another format.
            file = np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False)
            arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
        except Exception as error:  # whatever a damaged archive makes its readers raise
            raise StateError(f"{self.path} cannot be read ({error}); {_ANEW}") from None
        if str(arrays.pop("digest", "")) != fingerprint(arrays):
            raise StateError(f"{self.path} is damaged, or no saved state; {_ANEW}")
        return arrays

    def save(self, arrays: dict[str, np.ndarray]):
        """Write them, whole or not at all. A disk that is full loses the state, not the work."""
        if self.path is None or jax.process_index() != 0:
            return
        content = {"fingerprint": np.asarray(self.fingerprint), "logits": self.logits, **arrays}
        try:
            with written_whole(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, digest=np.asarray(fingerprint(content)), **content)  # pyright: ignore
        except OSError as error:
            warn(f"the state {self.path} could not be saved: {error}")

    def delete(self):
        """Delete the file: the evaluation has ended."""
        if self.path is None:
            return
        if jax.process_index() == 0:
            self.path.unlink(missing_ok=True)
        agreed(0.0)  # no process begins anew under this path before it is gone

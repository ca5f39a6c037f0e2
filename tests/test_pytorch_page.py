"""Every block of docs/pytorch.md runs, those that import torch where torch is installed."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from torch_layout import weights

PAGE = Path(__file__).parents[1] / "docs" / "pytorch.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("unchecked")  # as a reader runs it
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages = [(2, 64), (2, 128), (2, 256), (2, 512)]
    given = weights(stages, 64, wide=False, last_norm=False)
    given |= {"mu": np.full((1, 3, 1, 1), 0.5), "sigma": np.full((1, 3, 1, 1), 0.25)}
    if TORCH:
        import torch

        torch.save({name: torch.tensor(array) for name, array in given.items()}, "checkpoint.pt")
    else:
        np.savez("weights.npz", **given)
    names, ran = {}, 0
    for block in BLOCKS:
        if TORCH or "import torch" not in block:
            exec(compile(block, str(PAGE), "exec"), names)
            ran += 1
    assert ran == len(BLOCKS) - 2 * (not TORCH)
    said = capsys.readouterr().out
    assert "PGD needs gradients, and a BlackBox has no gradient" in said
    assert said.count("robust accuracy") == 5
    assert "no gradients" in said
    assert 0 < names["interval"].certified <= names["interval"].attacked

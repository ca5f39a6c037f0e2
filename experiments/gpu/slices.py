"""What is to be measured on a GPU, in slices, and what of it is there.

A slice is the command of an experiment, with the sizes of its paper, limited to one network (to
two, where claims are about a pair). Its worth is the number of claims of the ledger that it would
measure as in the paper and that are not measured so yet. Nothing is listed here: the slices follow
from the ledger's sources, and what is done from the folders of the runs.
"""

import dataclasses
from pathlib import Path
from typing import Any

from odejax.evaluation import load_result

from ..ledger.claims import ledger, sources
from ..ledger.printed import Claim, all_claims
from ..ledger.report import AS_IN_PAPER, PAPERS, kind_of
from ..ledger.sources import FOLDER, Source, Work
from ..lib.report import by_name


@dataclasses.dataclass(frozen=True)
class Slice:
    """A command limited to some networks.

    - `result`: which one it writes; `networks`: the records in it.
    - `command`: after "python".
    """

    result: str
    kind: str
    networks: tuple[str, ...]
    command: tuple[str, ...]
    dataset: str
    claims: int
    work: Work

    @property
    def name(self) -> str:
        return f"{self.result.removesuffix('_paper')}: {', '.join(self.networks)}"

    def smoke(self) -> "Slice":
        """The same in seconds, on the embedded digits."""
        result, *words = (word.replace("paper", "smoke") for word in (self.result, *self.command))
        return dataclasses.replace(self, command=tuple(words), result=result)


def slices() -> tuple[list[Slice], int]:
    """All that are worth something, and the number of other claims that a command would measure.

    Of these the paper gives no size, or other epochs than the command's.
    """
    groups: dict[Any, list[tuple[Claim, Source, Work]]] = {}
    others = 0
    for claim, entry in zip(all_claims(), ledger(PAPERS), strict=True):
        if kind_of(entry) == AS_IN_PAPER or not (nearest_first := sources(claim)):
            continue
        source = nearest_first[0]
        same_epochs = claim.epochs in (None, source.epochs)
        if source.work is None or not (claim.size_given and same_epochs):
            others += 1
            continue
        work = source.work()
        groups.setdefault((source.result, frozenset(work.options)), []).append(
            (claim, source, work)
        )
    return [_slice(group) for group in groups.values()], others


def _slice(group: list[tuple[Claim, Source, Work]]) -> Slice:
    (claim, source, work), *_ = group
    networks = dict.fromkeys(source.network for _, source, _ in group)
    attacks = {source.network: work.attacks for _, source, work in group}
    words = source.command.removesuffix(FOLDER).split()[1:]
    return Slice(
        source.result,
        source.kind,
        tuple(networks),
        (*words, *work.options),
        claim.dataset,
        len(group),
        dataclasses.replace(work, attacks=sum(attacks.values(), ())),
    )


def is_done(piece: Slice, folder: Path) -> bool:
    """Whether the run in the folder has the records of all its networks."""
    path = folder / "result.json"
    if not path.exists():
        return False
    result = load_result(path, piece.kind)
    return "runs" in result and set(piece.networks) <= set(by_name(result))

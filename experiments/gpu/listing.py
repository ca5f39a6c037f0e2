"""What remains to be done on a GPU, in the order in which it runs, and how long that takes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.device import DEFAULT, attained, peak

from ..lib.report import table
from .cost import SOLVER_STEPS, START_SECONDS, Counts, Estimate, estimate
from .slices import Slice, is_done

FIRST = ("enresnet_cifar10_paper", ("natural/ResNet20",))  # at full length, before all others
REFERENCE = "NVIDIA H100"  # whose times are shown where there is no GPU
ASSUMED_SHARE = 0.01  # of the peak: small networks are far from it


@dataclasses.dataclass(frozen=True)
class Listing:
    """Slices, the folder of their runs, and the device that their times are for.

    - `counts`: None where nobody asks how long they take.
    - `others`: the number of claims that no slice would measure as in the paper.
    """

    slices: list[Slice]
    out: Path
    counts: Counts | None = None
    device: str = REFERENCE
    others: int = 0

    def remaining(self) -> list[tuple[Slice, Estimate | None]]:
        """In the order in which they run; one that is not estimated yet comes last."""
        entries = [(piece, self._estimate(piece)) for piece in self.slices if not self.has(piece)]

        def order(entry: tuple[Slice, Estimate | None]) -> tuple[bool, float]:
            piece, cost = entry
            first = (piece.result, piece.networks) == FIRST
            return not first, float("inf") if cost is None else cost.seconds / piece.claims

        return sorted(entries, key=order)

    def has(self, piece: Slice) -> bool:
        return is_done(piece, self.out / piece.result)

    def _estimate(self, piece: Slice) -> Estimate | None:
        if self.counts is None or any(self.counts.uncounted([piece])):
            return None
        rate, _ = rate_of(self.device)
        return estimate(piece, self.out / piece.result, self.counts, rate)

    def count(self) -> Iterator[None]:
        """Count what is not counted yet, one trace after another."""
        if self.counts is not None:
            for wanted in self.counts.uncounted(self.slices):
                self.counts.count(*wanted)
                yield


def rate_of(device: str) -> tuple[float, str]:
    """FLOP a second, and where that number is from."""
    if (rate := attained(device)) is not None:
        return rate, f"{rate / 1e12:.3g} TFLOP/s, measured by benchmarks.device"
    known = device if peak(device, DEFAULT) is not None else REFERENCE
    most = peak(known, DEFAULT) or 0.0
    rate = ASSUMED_SHARE * most
    unknown = "" if known == device else f"; the peak of {device} is not known here"
    return rate, (
        f"{rate / 1e12:.3g} TFLOP/s, assumed: {ASSUMED_SHARE:.0%} of the peak of {known}, "
        f"{most / 1e12:g} TFLOP/s{unknown}"
    )


def shown(listing: Listing, minutes: float) -> list[Any]:
    """What remains, as a table, and what to know about it; `minutes`: of a call."""
    remaining = listing.remaining()
    too_long = [
        f"{piece.name} ({cost.epoch_seconds / 60:.0f})"
        for piece, cost in remaining
        if cost is not None and not cost.fits(60 * minutes)
    ]
    title = f"remaining: {len(remaining)} slices, minutes on {listing.device}"
    made = table(title, "", "claims", "epochs", "PFLOP", "attacks", "minutes")
    for piece, cost in remaining:
        made.add_row(piece.name, str(piece.claims), *_cells(cost))
    claims = sum(piece.claims for piece, _ in remaining)
    made.add_row("all", str(claims), "", "", "", _minutes(remaining))
    if listing.counts is None:
        return [made]
    return [
        made,
        "PFLOP: of the training that remains; attacks: at most, as if none succeeded",
        f"~: estimated at {rate_of(listing.device)[1]}; {START_SECONDS:.0f} s to start; an "
        f"adaptive solve is taken to have {SOLVER_STEPS} steps. Without ~ the training is timed by "
        f"its own epochs, and only the attacks are estimated",
        f"an epoch takes longer than a call of {minutes:g} minutes, give more --minutes: "
        f"{', '.join(too_long) or 'of none'}",
        f"not on the list: {listing.others} claims that no command here would measure as in the "
        f"paper, which gives no size, or other epochs than the command's",
    ]


def _minutes(remaining: list[tuple[Slice, Estimate | None]]) -> str:
    """Of all, where a network that several slices need is trained once."""
    known = [(piece, cost) for piece, cost in remaining if cost is not None]
    trained = {(piece.result, n): s for piece, cost in known for n, s in cost.trained.items()}
    seconds = sum(trained.values()) + sum(cost.other_seconds for _, cost in known)
    return f"~{seconds / 60:,.0f}" if known else ""


def _cells(cost: Estimate | None) -> list[str]:
    if cost is None:
        return [""] * 4
    done, epochs = cost.epochs
    flops = (f"{flop / 1e15:.3g}" for flop in (cost.training, cost.evaluation))
    return [f"{done}/{epochs}", *flops, f"{'' if cost.measured else '~'}{cost.seconds / 60:,.0f}"]

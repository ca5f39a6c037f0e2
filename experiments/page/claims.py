"""The ledger on the page: every claim of the papers, and what the measurement says of it."""

from typing import Any

from odejax.evaluation import confidence_interval

from ..ledger.report import AS_IN_PAPER, Entry, kind_of, not_reached

# What each verdict means, in the order in which they are listed.
VERDICTS = {
    "refuted": "The claim is above robust accuracy under all attacks, by more than sampling error "
    "(95 %), for the paper's network trained here as the paper says.",
    "within": "The claim lies between certified accuracy and robust accuracy under all attacks, "
    "sampling error included, for the paper's network trained here as the paper says.",
    "below": "The claim is below certified accuracy, by more than sampling error (95 %).",
    "no interval": "Measured as in the paper, but no robust accuracy: a clean accuracy or another "
    "quantity. Both numbers are shown.",
    "not measured": "Not measured as in the paper. Where a smaller network, a shorter training or "
    "a network of unknown size was measured instead, its numbers are shown, but they say nothing "
    "about the claim.",
}


def claim_rows(entries: list[Entry]) -> list[dict[str, Any]]:
    """Each claim with an `id` of its own, its `verdict` and `how` it was measured."""
    return [
        entry
        | {
            "id": ": ".join(
                str(entry[part])
                for part in ("paper", "table", "dataset", "model", "attack", "norm", "eps")
                if part in entry
            ),
            "how": kind_of(entry),
            "verdict": verdict(entry),
        }
        for entry in entries
    ]


def verdict(entry: Entry) -> str:
    """One of `VERDICTS`."""
    if kind_of(entry) != AS_IN_PAPER:
        return "not measured"
    if "worst_attack" not in entry:
        return "no interval"
    if not_reached(entry):
        return "refuted"
    n = entry["n"]
    low, _ = confidence_interval(round(entry["certified"] / 100 * n), n)
    return "below" if entry["claimed"] < 100 * low else "within"

"""Sampling error of an accuracy."""

from .._checks import check_count, check_share


def confidence_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson's exact interval for a fraction of which `successes` of `n` were seen.

    - `level`: the probability with which it holds the true fraction, in (0, 1).

    Raises `ValueError` unless 0 <= successes <= n, n >= 1 and 0 < level < 1.

    >>> low, high = odejax.evaluation.confidence_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.824, 0.951)

    C. Clopper and E. Pearson, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26, 1934.
    """
    check_count(n=n)
    check_count(0, successes=successes)
    if successes > n:
        raise ValueError(f"successes must be at most n = {n}; got {successes}")
    check_share(level=level)
    if level == 0:
        raise ValueError("level must be positive; got 0")
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(successes, n - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return float(low), float(high)


def chance_note(accuracy: float, n: int, n_classes: int) -> list[str]:
    """A line where the clean accuracy of n images is hardly above that of a guess, 1 / n_classes.

    That is where its interval holds 1 / n_classes, or lies below, and it is nearer to it than to 1.

    >>> from odejax.evaluation.intervals import chance_note
    >>> chance_note(0.125, 8, 10)[0].partition(":")[0]
    'clean accuracy 12.5 % is not significantly above chance, 10.0 %'
    >>> chance_note(0.5, 8, 10)
    []
    """
    chance, (low, _) = 1 / n_classes, confidence_interval(round(accuracy * n), n)
    if low > chance or accuracy > (1 + chance) / 2:
        return []
    return [
        f"clean accuracy {percent(accuracy)} % is not significantly above chance, "
        f"{percent(chance)} %: are labels and pixels as in training?"
    ]


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"

"""Words of what the library prints."""


def counted(n: int, noun: str) -> str:
    """A number and what it counts.

    >>> from odejax._words import counted
    >>> counted(1, "image"), counted(2, "image")
    ('1 image', '2 images')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"

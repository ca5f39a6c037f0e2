"""Checks annotations at run time, where an int passes for a float, as for static type checkers."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

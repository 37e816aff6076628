"""The one exception that stands for a mistake of the user's, and checks that raise it."""

import math
from numbers import Real
from typing import Any


class ConfigError(ValueError):
    """A mistake that the user can mend in the config.

    Its message is one line that names the field, the value and what would be right, so that the
    command line tools can print it instead of a traceback.
    """


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether it is a number; True and False, which Python counts among them, are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_positive(**fields: int) -> None:
    """Check sizes and counts by the names of their fields.

    Raises:
        ConfigError: If one is not a whole number of 1 or more.
    """
    for field, value in fields.items():
        if not is_number(value, int) or value < 1:
            raise ConfigError(f'{field}={value!r}: must be a whole number of 1 or more')


def check_above_zero(**fields: float) -> None:
    """Check temperatures and the like by the names of their fields.

    Raises:
        ConfigError: If one is not a finite number above 0.
    """
    for field, value in fields.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f'{field}={value!r}: must be a number above 0')


def check_not_negative(**fields: float) -> None:
    """Check weights by the names of their fields.

    Raises:
        ConfigError: If one is not a finite number of 0 or more.
    """
    for field, value in fields.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ConfigError(f'{field}={value!r}: must be a number of 0 or more')


def check_switch(**fields: bool) -> None:
    """Check switches by the names of their fields.

    Raises:
        ConfigError: If one is neither True nor False.
    """
    for field, value in fields.items():
        if not isinstance(value, bool):
            raise ConfigError(f'{field}={value!r}: must be True or False')

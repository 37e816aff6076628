"""The one exception that stands for a mistake of the user's, and checks that raise it."""

import functools
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any


class ConfigError(ValueError):
    """A mistake that the user can mend in the config.

    Its message is one line that names the field, the value and what would be right, so that the
    command line tools can print it instead of a traceback.
    """


@contextmanager
def named(field: str) -> Iterator[None]:
    """Give what other packages raise for a wrong config the name of the field.

    Raises:
        ConfigError: In place of any exception but a ConfigError or a FileNotFoundError.
    """
    try:
        yield
    except (ConfigError, FileNotFoundError):
        raise
    except Exception as error:
        raise ConfigError(f'{field}: {describe(error)}') from error


def checked_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate the ``__init__`` of what a config is unpacked into.

    An argument that is missing or unknown is then a ConfigError, not a TypeError.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, /, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            takes = ', '.join(list(signature.parameters)[1:])
            raise ConfigError(f'{type(self).__name__}: {error}; it takes {takes}') from None
        init(self, *args, **kwargs)

    return checked


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether it is a number; True and False, which Python counts among them, are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


def are_sizes(values: Any, count: int) -> bool:
    """Whether it is a list or tuple of so many whole numbers of 1 or more."""
    is_list = isinstance(values, (list, tuple)) and len(values) == count
    return is_list and all(is_number(size, int) and size > 0 for size in values)


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


def check_config(**fields: Any) -> None:
    """Check configs of parts by the names of their fields.

    Raises:
        ConfigError: If one is no dict with a type.
    """
    for field, value in fields.items():
        if not isinstance(value, dict) or not value.get('type'):
            raise ConfigError(f'{field}={value!r}: must be a dict with a type')


def check_sizes(count: int, **fields: Any) -> None:
    """Check lists of sizes by the names of their fields.

    Args:
        count: How many sizes each must have.
        **fields: Name -> list or tuple.

    Raises:
        ConfigError: If one is no list of so many whole numbers of 1 or more.
    """
    for field, value in fields.items():
        if not are_sizes(value, count):
            raise ConfigError(f'{field}={value!r}: must be {count} whole numbers of 1 or more')


def describe(error: BaseException) -> str:
    """Return the message of an exception on one line, or its type where it has no message."""
    # The str() of a KeyError is the repr() of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if lines and 'in DataLoader worker process' in lines[0]:
        # torch puts the worker's traceback before the message.
        lines = [lines[-1].partition(': ')[2] or lines[-1]]
    text = ' '.join(lines)
    # A single word, such as the key of a KeyError, says nothing without the type.
    return text if ' ' in text else f'{type(error).__name__}: {text}'.rstrip(': ')


def printable(content: Any) -> str:
    """Return the content of an untrusted file as text that fits into a message of one line."""
    return ''.join(filter(str.isprintable, str(content)))[:200]


@contextmanager
def one_line_for(kind: type[Exception], show_traceback: bool) -> Iterator[None]:
    """End the program with exit code 2 and the message of an exception on one line.

    Args:
        kind: The exceptions to catch. Others are passed on.
        show_traceback: Whether to print the traceback before the message.
    """
    try:
        yield
    except kind as error:
        if show_traceback:
            traceback.print_exc()
        print(f'error: {describe(error)}', file=sys.stderr)
        sys.exit(2)

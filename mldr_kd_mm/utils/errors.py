"""User errors and argument checks; imports nothing heavy, so that the command line stays fast."""

import difflib
import functools
import inspect
import math
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

REMOTE = re.compile(r'\w+://|hf[-_]hub:')
"""The beginning of a URL, or of a name on the Hugging Face hub."""

_SIMILAR_START = 0.8


class ConfigError(ValueError):
    """Error that the user can fix in the config.

    Its message is one line of the form ``field=value: problem; fix``, which the command-line tools
    print instead of a traceback.
    """


class MissingFileError(ConfigError, FileNotFoundError):
    """A file that the config or the command line names does not exist."""


@contextmanager
def named(field: str, explain: Callable[[Exception], str] | None = None) -> Iterator[None]:
    """Prefix errors from other packages with the config field that caused them.

    Args:
        field: Name of the field.
        explain: Function that returns the whole message for an error instead.

    Raises:
        ConfigError: Replaces every other exception.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        message = explain(error) if explain else f'{field}: {describe(error)}'
        raise ConfigError(message) from error


def checked_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Make a missing or unknown argument of an ``__init__`` a ConfigError.

    Decorator for classes whose arguments come from a config.
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
    """Return whether ``value`` is a number; True and False do not count."""
    return isinstance(value, kind) and not isinstance(value, bool)


def are_sizes(values: Any, count: int) -> bool:
    """Return whether ``values`` is a list or tuple of ``count`` positive integers."""
    is_list = isinstance(values, (list, tuple)) and len(values) == count
    return is_list and all(is_number(size, int) and size > 0 for size in values)


def check_file(field: str, path: str, hint: str = '') -> None:
    """Check that a path is a file; a URL or a name on the Hugging Face hub is not looked up.

    Args:
        field: Name of the argument or field.
        path: The path.
        hint: What to do about a missing file, for the error.

    Raises:
        MissingFileError: There is no such file.
    """
    if not (REMOTE.match(path) or os.path.isfile(path)):
        raise MissingFileError(f'{field}={path!r}: there is no such file{hint and "; "}{hint}')


def check_positive(**fields: int) -> None:
    """Check that fields are positive integers.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not is_number(value, int) or value < 1:
            raise ConfigError(f'{field}={value!r}: must be a positive integer')


def check_above_zero(**fields: float) -> None:
    """Check that fields are finite numbers above 0.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f'{field}={value!r}: must be a positive number')


def check_not_negative(**fields: float) -> None:
    """Check that fields are finite, non-negative numbers.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ConfigError(f'{field}={value!r}: must be a non-negative number')


def check_count(**fields: int) -> None:
    """Check that fields are integers of at least 0.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not is_number(value, int) or value < 0:
            raise ConfigError(f'{field}={value!r}: must be a non-negative integer')


def check_choice(choices: Sequence[str], **fields: str) -> None:
    """Check that fields are among the choices.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f'{field}={value!r}: must be {" or ".join(map(repr, choices))}')


def check_switch(**fields: bool) -> None:
    """Check that fields are True or False.

    Raises:
        ConfigError: A field is neither.
    """
    for field, value in fields.items():
        if not isinstance(value, bool):
            raise ConfigError(f'{field}={value!r}: must be True or False')


def check_config(**fields: Any) -> None:
    """Check that fields are configs, which are dicts with a ``type``.

    Raises:
        ConfigError: A field is not.
    """
    for field, value in fields.items():
        if not isinstance(value, dict) or not value.get('type'):
            raise ConfigError(f'{field}={value!r}: must be a dict with a type')


def check_type(field: str, value: Any, expected: str, *types: type) -> None:
    """Check the type of a field.

    Args:
        field: Name of the field.
        value: Its value.
        expected: What it must be, for the error.
        *types: The types that it may have.

    Raises:
        ConfigError: It has another type.
    """
    if not isinstance(value, types):
        raise ConfigError(f'{field}={value!r}: must be {expected}')


def check_sizes(count: int, **fields: Any) -> None:
    """Check that fields are lists of positive integers.

    Args:
        count: Required length of each list.
        **fields: Name -> list or tuple.

    Raises:
        ConfigError: A field is not such a list.
    """
    for field, value in fields.items():
        if not are_sizes(value, count):
            raise ConfigError(f'{field}={value!r}: must be {count} positive integers')


def describe(error: BaseException) -> str:
    """Return the message of an exception on one line, with its type if the message is too short."""
    # The str() of a KeyError is the repr() of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if lines and 'in DataLoader worker process' in lines[0]:
        # torch prepends the worker's traceback to the message.
        lines = [lines[-1].partition(': ')[2] or lines[-1]]
    text = ' '.join(lines)
    # A single word, such as the key of a KeyError, is not clear without the type.
    return text if ' ' in text else f'{type(error).__name__}: {text}'.rstrip(': ')


def did_you_mean(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return 'did you mean A or B?' for the most similar names; '' if none is similar.

    A long name is also similar if it almost begins with ``name``, as ``vit_tiny_patch16_224`` with
    ``vit_tinny``, unless the cutoff is 0.8 or more.

    Args:
        name: The name that is unknown.
        names: The known names.
        cutoff: Least similarity, from 0 to 1.
    """
    name = str(name)
    matcher = difflib.SequenceMatcher(b=name)
    scores = {}
    for known in dict.fromkeys(names):
        parts = {known: cutoff}
        if cutoff < _SIMILAR_START and len(name) > 3:
            parts.setdefault(known[: len(name)], _SIMILAR_START)
        for part, least in parts.items():
            matcher.set_seq1(part)
            # The quick ratios are upper bounds of the similarity.
            if matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least:
                score = matcher.ratio()
                if score >= least:
                    scores[known] = max(score, scores.get(known, 0))
    near = sorted(scores, key=lambda known: (-scores[known], len(known), known))[:3]
    return f'did you mean {" or ".join(near)}?' if near else ''


def printable(content: Any) -> str:
    """Return the content of an untrusted file as text that fits into a message of one line."""
    return ''.join(filter(str.isprintable, str(content)))[:200]


@contextmanager
def one_line_for(
    kind: type[Exception], show_traceback: bool, reword: Callable[[str], str] = str
) -> Iterator[None]:
    """End the program with exit code 2 and the message of an exception on one line.

    Ctrl-C ends it with code 130, and a reader of the output that has ended, such as ``head``, with
    141, as the shell reports other programs.

    Args:
        kind: The exceptions to catch. Others are passed on.
        show_traceback: Whether to print the traceback before the message.
        reword: Function that turns the message into the one that is printed.
    """
    try:
        yield
        sys.stdout.flush()
    except kind as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            # Python flushes the output once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        if show_traceback:
            traceback.print_exc()
        print(f'error: {reword(describe(error))}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if show_traceback:
            traceback.print_exc()
        print('stopped', file=sys.stderr)
        sys.exit(130)


def _has_no_reader() -> bool:
    """Return whether the standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))

"""Nested dicts and lists of configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class _NotSet:
    def __repr__(self) -> str:
        return 'not set'


NOT_SET = _NotSet()
"""Stand-in for the value of a field that is missing on one side."""


def as_list(value: Any) -> list[Any]:
    """Return the items of a list or tuple, or a single value as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def iter_differences(one: Any, other: Any, field: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which two nested values differ.

    Args:
        one: Dicts and lists, nested in any way, of values that can be compared.
        other: The value to compare ``one`` with.
        field: Dotted name of the two values within a larger one.

    Yields:
        The dotted name of a field, such as ``steps.0.size``, and its values in ``one`` and
        ``other``; :data:`NOT_SET` where a dict lacks the field. Lists of different lengths differ
        as a whole.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        items = [(key, one.get(key, NOT_SET), other.get(key, NOT_SET)) for key in one | other]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        items = [(index, *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    else:
        if one != other:
            yield field, one, other
        return
    for key, a, b in items:
        yield from iter_differences(a, b, f'{field}.{key}' if field else str(key))

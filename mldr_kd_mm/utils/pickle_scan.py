"""Check a pickle before it is loaded.

A pickle of a few hundred bytes can describe nested tuples whose hash takes years to compute, or ask
for a table of gigabytes. The unpicklers cannot be interrupted, so the instructions are checked
first: a simple stack machine follows them without building any object.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from mldr_kd_mm.utils.limits import (
    EXPANSION,
    EXPANSION_ALLOWANCE,
    MAX_HASHED,
    MAX_PICKLE_DEPTH,
    MAX_PICKLE_INSTRUCTIONS,
)


class _Global(str):
    """Name of a function or class, ``module.name``."""


class _Object(list):
    """Object that a call returns: a list of its arguments."""


_MARK = object()
_PUSH_NOTHING = {'PROTO', 'FRAME', 'STOP', 'READONLY_BUFFER'}
_PUSH_ANYTHING = {'PERSID', 'EXT1', 'EXT2', 'EXT4', 'NEXT_BUFFER'}
_SHORT = 16  # strings up to this length are kept, because some are names of encodings
_ENCODE = '_codecs.encode'


def check_pickle(stream: BinaryIO, size: int) -> set[str]:
    """Check that loading a pickle takes time and memory in proportion to its size.

    Args:
        stream: The pickle; it is read up to its end.
        size: Size of its file in bytes.

    Returns:
        The functions and classes that it names, ``module.name``; those that it calls, or passes as
        the first argument of a call, end with ``()``.

    Raises:
        ValueError: The pickle is incomplete or exceeds one of the limits in
            :mod:`mldr_kd_mm.utils.limits`.
    """
    return _Scanner(size).run(stream)


class _Scanner:
    """Stack machine whose objects only have a size.

    A leaf is a short string or an int, its size; a tuple is a tuple of its items, and any other
    container a list of them.
    """

    def __init__(self, size: int) -> None:
        self.limit = EXPANSION_ALLOWANCE + EXPANSION * size
        self.spent = 0  # items and bytes that calls and hashes read
        self.hashed = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def run(self, stream: BinaryIO) -> set[str]:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_PICKLE_INSTRUCTIONS:
                raise ValueError(f'its pickle has more than {MAX_PICKLE_INSTRUCTIONS} instructions')
            name = instruction.name
            if name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
                if not 0 <= argument <= count:
                    # The unpickler would make a table of this length.
                    raise ValueError(f'its pickle numbers its objects up to {argument}')
                self.memo[argument] = self._top()
            else:
                self._step(name, argument)
        if self.stack:
            self._check_result(self.stack[-1])
        return self.names

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == 'MARK':
            stack.append(_MARK)
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(self.memo.get(argument, 1))  # the unpickler raises for an unknown number
        elif name == 'MEMOIZE':
            self.memo[len(self.memo)] = stack[-1] if stack and stack[-1] is not _MARK else 1
        elif name == 'TUPLE':
            stack.append(tuple(self._pop_mark()))
        elif name in ('EMPTY_TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'):
            count = 0 if name == 'EMPTY_TUPLE' else int(name[-1])
            items = [self._pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif name in ('EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET'):
            stack.append([])
        elif name in ('LIST', 'DICT', 'FROZENSET'):
            items = self._pop_mark()
            self._hash({'LIST': [], 'DICT': items[::2], 'FROZENSET': items}[name])
            stack.append(items)
        elif name in ('APPEND', 'APPENDS', 'ADDITEMS', 'SETITEM', 'SETITEMS'):
            count = {'APPEND': 1, 'SETITEM': 2}.get(name)
            items = [self._pop() for _ in range(count)][::-1] if count else self._pop_mark()
            self._hash({'ADDITEMS': items}.get(name, items[::2] if 'SET' in name else []))
            self._extend(items)
        elif name == 'POP':
            self._pop(mark=True)
        elif name == 'POP_MARK':
            self._pop_mark()
        elif name == 'DUP':
            stack.append(self._top())
        elif name in ('GLOBAL', 'STACK_GLOBAL'):
            if name == 'STACK_GLOBAL':
                argument = ' '.join(map(str, (self._pop(), self._pop())[::-1]))
            stack.append(_Global('.'.join(argument.split(' '))))
            self.names.add(str(stack[-1]))
        elif name in ('REDUCE', 'NEWOBJ', 'NEWOBJ_EX'):
            items = [self._pop() for _ in range(3 if name == 'NEWOBJ_EX' else 2)][::-1]
            self._call(items[0], items[1:])
        elif name in ('INST', 'OBJ'):
            items = self._pop_mark()
            if name == 'INST':
                items.insert(0, _Global('.'.join(argument.split(' '))))
            self._call(items[0] if items else self._raise_damaged(), [tuple(items[1:])])
        elif name == 'BUILD':
            state = self._pop()
            self._spend(state)
            self._extend([state])
        elif name == 'BINPERSID':
            self._spend(self._pop())
            stack.append(1)
        elif name in _PUSH_ANYTHING or name not in _PUSH_NOTHING:
            stack.append(self._leaf(argument))

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, (str, bytes, bytearray)):
            short = isinstance(value, str) and len(value) <= _SHORT
            return value if short else 1 + len(value)
        if isinstance(value, int) and value.bit_length() > 64:
            self._count_hashed(1)
        return 1

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self._raise_damaged()
        return self.stack[-1]

    def _pop(self, mark: bool = False) -> Any:
        if not mark:
            self._top()
        return self.stack.pop() if self.stack else self._raise_damaged()

    def _pop_mark(self) -> list[Any]:
        items = []
        while (item := self._pop(mark=True)) is not _MARK:
            items.append(item)
        return items[::-1]

    def _raise_damaged(self) -> NoReturn:
        raise ValueError('its pickle is damaged')

    def _extend(self, items: Sequence[Any]) -> None:
        """Add items to the container on top of the stack."""
        if isinstance(self._top(), list):
            self.stack[-1].extend(items)

    def _call(self, function: Any, arguments: list[Any]) -> None:
        first = arguments[0][0] if isinstance(arguments[0], tuple) and arguments[0] else None
        self.names.update(f'{name}()' for name in (function, first) if isinstance(name, _Global))
        if function == _ENCODE and not self._is_latin1(arguments[0]):
            # Some encodings double the length, and calls can be nested.
            raise ValueError(f'its pickle calls {_ENCODE} with other arguments than text, latin1')
        for argument in arguments:
            self._spend(argument)
        self.stack.append(_Object(arguments))

    @staticmethod
    def _is_latin1(arguments: Any) -> bool:
        if not isinstance(arguments, tuple) or len(arguments) != 2:
            return False
        text, encoding = arguments
        return isinstance(text, (int, str)) and encoding in ('latin1', 'latin-1')

    def _hash(self, keys: Sequence[Any]) -> None:
        for key in keys:
            if isinstance(key, tuple):
                self._count_hashed(self._spend(key))

    def _count_hashed(self, count: int) -> None:
        self.hashed += count
        if self.hashed > MAX_HASHED:
            raise ValueError(f'its pickle uses more than {MAX_HASHED} tuples or long ints as keys')

    def _spend(self, item: Any) -> int:
        """Count the parts of an object, shared ones as often as they are reached."""
        before, todo = self.spent, [item]
        while todo:
            part = todo.pop()
            is_container = isinstance(part, (tuple, list))
            self.spent += 1 + len(part) if is_container else _size(part)
            if self.spent > self.limit:
                self._raise_expansion()
            if is_container:
                todo.extend(part)
            if type(part) is list:  # may become a set
                self._count_hashed(sum(isinstance(each, tuple) for each in part))
        return self.spent - before

    def _raise_expansion(self) -> NoReturn:
        raise ValueError('its pickle unpacks to far more than its size')

    def _check_result(self, result: Any) -> None:
        """Check the size and the depth of the loaded object, shared parts counted repeatedly."""
        measured: dict[int, tuple[int, int]] = {}  # of each container
        entered: set[int] = set()
        todo = [(result, False)]
        while todo:
            item, is_left = todo.pop()
            if is_left:
                # A container that holds itself counts once.
                parts = [measured.get(id(part), (_size(part), 0)) for part in item]
                size = min(1 + sum(part[0] for part in parts), self.limit + 1)
                measured[id(item)] = size, 1 + max((part[1] for part in parts), default=0)
            elif isinstance(item, (tuple, list)) and id(item) not in entered:
                entered.add(id(item))
                todo.append((item, True))
                todo.extend((part, False) for part in item)
        size, depth = measured.get(id(result), (1, 0))
        if size > self.limit:
            self._raise_expansion()
        if depth > MAX_PICKLE_DEPTH:
            raise ValueError(f'its pickle is nested more than {MAX_PICKLE_DEPTH} deep')


def _size(leaf: Any) -> int:
    if isinstance(leaf, int):
        return leaf
    return 1 + len(leaf) if isinstance(leaf, str) else 1

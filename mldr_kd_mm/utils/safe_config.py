"""Read the config text of a checkpoint without executing it."""

from __future__ import annotations

import ast
from typing import Any

from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.limits import MAX_CONFIG_BYTES

_NAMES = {'inf': float('inf'), 'nan': float('nan')}


def parse_config(text: str, field: str = "checkpoint: meta['cfg']") -> dict[str, Any]:
    """Parse the output of mmengine's ``Config.pretty_text``, which every checkpoint contains.

    mmengine's own ``Config.fromstring`` executes the text as a program.

    Args:
        text: Lines of ``name = value``, where values are literals and ``dict(...)``.
        field: Origin of the text, for error messages.

    Returns:
        Name -> value, plain Python objects.

    Raises:
        ConfigError: The text contains anything else, or is larger than 1 MB.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f'{field}: must have at most {MAX_CONFIG_BYTES / 1e6:.0f} MB')
    try:
        statements = ast.parse(text).body
        return {_target(statement): _value(statement.value) for statement in statements}
    except (AttributeError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise ConfigError(
            f'{field}: must be a config of plain values, as mmengine writes it'
        ) from None


def _target(statement: ast.stmt) -> str:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        raise ValueError('not a line of name = value')
    return statement.targets[0].id


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if node.func.id != 'dict' or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError('not a dict(...)')
        values = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
        for mapping in node.args:  # dict({'a.b': 1}), for keys that are not identifiers
            values = {**_value(mapping), **values}
        return values
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name):
        if node.id not in _NAMES:
            raise ValueError('not a value')
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    return ast.literal_eval(node)

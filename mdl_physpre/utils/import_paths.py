"""Classes and functions by import path, with errors that say what was found."""

from __future__ import annotations

import ast
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from mdl_physpre.errors import ConfigError, nearest


def import_object(path: str, what: str) -> Any:
    """What stands at ``package.module.Class``, ``package.module:Class`` or ``package.module:Class.member``.

    ``what`` begins the message. Raises ConfigError where there is no such module or member, naming the nearest.
    """
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not attribute:
        raise ConfigError(f"{what}: {path!r} is no import path; expected package.module.Class or package.module:Class")
    found: Any = import_named_module(module, what)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            names = [n for n in vars(found) if not n.startswith("_")]
            owner = getattr(found, "__name__", path)
            raise ConfigError(f"{what}: {owner} has no {part!r}; {nearest(part, names)}") from error
    return found


def path_and_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """The path and the arguments of ``path?key=value&key=value``; values are read as Python's or YAML's constants.

    Raises ConfigError for anything else after ``?``.
    """
    path, _, query = text.partition("?")
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{text}: found {item!r} after '?', expected key=value, separated by '&'")
        arguments[key] = _value(unquote(value))
    return path, arguments


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "null": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def import_named_module(module: str, what: str | None = None) -> Any:
    """``importlib.import_module`` with a ConfigError that begins with ``what`` where that fails."""
    try:
        return import_module(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{what or module}: the module {module!r} cannot be imported: {error}; install its package, or put its "
            "folder on PYTHONPATH"
        ) from error

"""YAML in which a key that stands twice in a section is an error, as YAML 1.2 has it, and not the second one's word."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor, whose keys may be overridden
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if isinstance(key, (str, int, float, bool)) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice, in lines {seen[key]} and {line}; keep one of them"
            )
        if isinstance(key, (str, int, float, bool)):
            seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises
    ------
    yaml.YAMLError : what is no YAML, and a key that stands twice, with both lines.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def told(error: Exception) -> str:
    """What a YAMLError says, in our words where it is a common mistake."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = str(getattr(error, "problem", None) or error)
    if "\\t" in problem:
        return f"{where}a tab; YAML wants spaces before keys"
    return f"{where}{' '.join(problem.split())}"

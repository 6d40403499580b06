"""Reading a recipe's YAML: safe, every key once, nothing hidden behind anchors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain values only; refuses what YAML would silently overwrite or copy."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "recipes have no anchors", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:i]):
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def find_file(path: str | Path) -> Path | None:
    """The file that a path names; None if there is none, or no path is like this.

    Example:
        >>> find_file("schema: 1, " * 100), find_file("~nobody-of-this-name/a.yaml")
        (None, None)
    """
    try:
        file = Path(path).expanduser()
        return file if file.is_file() else None
    except (OSError, RuntimeError):  # too long, behind closed doors, of no known user
        return None


def read_yaml(text: str) -> Any:
    """Read a YAML document.

    Args:
        text: Of one document.

    Returns:
        Mappings, lists and plain values.

    Raises:
        yaml.YAMLError: If it cannot be read, names objects of Python, has anchors or a key twice.
        ValueError: If a date in it is none.
        RecursionError: If it is nested too deep.

    Example:
        >>> read_yaml("{schema: 1, model: any}")
        {'schema': 1, 'model': 'any'}
    """
    return yaml.load(text, Loader=_Loader)

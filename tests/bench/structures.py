"""The structure of every JSON result of `ee-bench`: its keys in order, and the type of each value.

The file structures.json was written with version 0.30, whose results were dictionaries.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("structures.json")
_OF_THE_MACHINE = frozenset({"cpu_mhz", "governor", "others_cpus"})
"""Fields that are null on some machines."""


def describe_structure(value: Any) -> Any:
    """Describe a JSON value: objects by their keys in order, a list by its first value, and other values by their type."""
    if isinstance(value, dict):
        return {
            key: "depends on the machine" if key in _OF_THE_MACHINE else describe_structure(part)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [describe_structure(part) for part in value[:1]]
    return type(value).__name__


def require_structure(name: str, result: dict[str, Any]) -> None:
    """Fail if a result has other keys than before, another order of keys, or other types of values."""
    expected = json.loads(FILE.read_text())[name]
    assert json.dumps(describe_structure(result), indent=1) == json.dumps(expected, indent=1)

"""The structure of every JSON result of `ee-bench`: its keys in order, and the type of each value.

structures.json has the structures of the sample's results, written when results were still dictionaries.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("structures.json")
_NULLABLE = frozenset({"cpu_mhz", "governor", "others_cpus", "p50_ms", "p90_ms", "p99_ms", "checkpoint"})
"""Fields that are null on some machines, with few samples or without an option."""
_BY_NAME = frozenset({"contenders", "exits", "stages_ms"})
"""Objects whose keys are names of contenders, exits or stages. Their values are alike."""


def describe_structure(value: Any, key: str = "") -> Any:
    """Describe a JSON value: objects by their keys in order, a list by its first value, and other values by their type."""
    if key in _NULLABLE:
        return "value or null"
    if isinstance(value, dict):
        parts = {name: describe_structure(part, name) for name, part in value.items()}
        return {"by name": next(iter(parts.values()), None)} if key in _BY_NAME else parts
    if isinstance(value, list):
        return [describe_structure(part) for part in value[:1]]
    return type(value).__name__


def require_structure(name: str, result: dict[str, Any]) -> None:
    """Fail if a result has other keys than before, another order of keys, or other types of values."""
    expected = json.loads(FILE.read_text())[name]
    assert json.dumps(describe_structure(result), indent=1) == json.dumps(expected, indent=1)

"""All families of attacks, by name. A new module adds its own ``FAMILIES`` here.

Attacks that need processes or threads of their own, such as `kill -9` of a writer, are programs beside this list:
``python -m attacks.threads``, ``python -m attacks.kill``, ``python -m attacks.soak``.
"""

from attacks import (
    bombs,
    engines,
    folders,
    golden,
    graphs,
    images,
    manifests,
    mistakes,
    odd_images,
    places,
    tokenizers_json,
    word_files,
)
from attacks.family import Family

_MODULES = (manifests, tokenizers_json, golden, graphs, places, images, odd_images, word_files, engines, folders, bombs)

FAMILIES: dict[str, Family] = {family.name: family for module in _MODULES for family in module.FAMILIES}
"""The families of a run."""

KNOWN = FAMILIES | {family.name: family for family in mistakes.FAMILIES}
"""The families that a worker can carry out: those too with which the suite tests itself."""

"""All families of attacks, by name. A new module adds its own ``FAMILIES`` here.

Attacks that need processes or threads of their own, such as `kill -9` of a writer, are programs beside this list:
``python -m attacks.threads``, ``python -m attacks.kill``, ``python -m attacks.soak``.
"""

from attacks import bombs, golden, graphs, images, manifests, odd_images, tokenizers_json
from attacks.family import Family

_MODULES = (manifests, tokenizers_json, golden, graphs, images, odd_images, bombs)

FAMILIES: dict[str, Family] = {family.name: family for module in _MODULES for family in module.FAMILIES}

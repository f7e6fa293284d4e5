"""Read an untrusted manifest.json: strict JSON, known fields, right types, and values in range."""

from ee_export.errors import BadPackage
from ee_export.package.check_manifest import check
from ee_export.package.decode import decode
from ee_export.package.manifest import SCHEMA, Manifest
from ee_export.package.strict_json import Refused, excerpt, parse

_REPAIR = "copy the package again, or rebuild it with `ee-export build`"
_DEEPEST = 32


def from_json(data: bytes, where: str) -> Manifest:
    """Decode and check a manifest.

    Args:
        data: the whole file. The caller bounds its size.
        where: the file's name, for messages.

    Raises:
        BadPackage: the file is no strict JSON or of a newer schema, or a field is missing, unknown, of the wrong type
            or out of range. The message names the field.
    """
    try:
        content = parse(data, deepest=_DEEPEST)
    except ValueError as error:
        raise BadPackage(f"{where}: not valid JSON ({error}); {_REPAIR}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BadPackage(
            f"{where}: schema is {excerpt(schema)}, expected a whole number; this is no package manifest; {_REPAIR}"
        )
    if schema > SCHEMA:
        raise BadPackage(
            f"{where}: schema {schema} is newer than this version understands ({SCHEMA}); `pip install --upgrade ee_export`"
        )
    try:
        manifest = decode(Manifest, content, "")
        check(manifest)
    except Refused as error:
        raise BadPackage(f"{where}: {error}; {_REPAIR}") from None
    return manifest

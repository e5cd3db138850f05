"""Reads JSONL files, with one document per line and its access list, tenant and metadata."""

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import IO, NoReturn

from app.errors import IngestError
from app.ingest.document import Document, Results, failure, unparsable
from app.ingest.source import Damage, Source
from app.ingest.text import check_characters, decode, normal, one_line, refuse_utf16


def read_rows(source: Source, max_bytes: int) -> Results:
    """Yield a document or a Failure for each row of a JSONL file."""
    lines_of_ids: dict[str, int] = {}
    empty = True
    with source.open() as file:
        for number, line in enumerate(_bounded_lines(file, 2 * max_bytes), 1):
            if number == 1 and line is not None:
                refuse_utf16(line)
            if line is not None and not line.strip():
                continue
            empty = False
            try:
                document = _row(source.name, line, max_bytes)
                first = lines_of_ids.setdefault(document.id, number)
                if first != number:
                    raise IngestError(f"id {document.id} is already on line {first}; rename it")
                yield document
            except IngestError as error:
                yield failure(f"{source.name}:{number}", str(error))
    if empty:
        raise IngestError("is empty; it has no rows")


def _bounded_lines(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """Yield the lines, or None for a line of more than `limit` bytes, which is skipped."""
    number = 0
    try:
        while line := file.readline(limit + 1):
            number += 1
            if len(line) <= limit or line.endswith(b"\n"):
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
            yield None
    except Damage as damage:
        raise damage.after(f"line {number}") from None


def _row(name: str, line: bytes | None, max_bytes: int) -> Document:
    if line is None:
        raise IngestError(f"the line is longer than {2 * max_bytes:,} bytes; split the text")
    row = _json_object(line)
    row_id = _row_id(row)
    text = _string(row, "text")
    if text is None:
        raise IngestError('"text" is missing; each row needs "id" and "text"')
    return Document(
        id=row_id,
        source=f"{name}#{row_id}",
        title=one_line(_string(row, "title") or "") or row_id,
        text=normal(text, max_bytes),
        allow=_allow(row.get("allow")),
        metadata=_metadata(row),
        tenant=_tenant(row),
    )


def _json_object(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(decode(line), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise IngestError(
            f"is not JSON ({error.msg}, column {error.colno}); each line must be one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise IngestError(f"is not valid JSON ({unparsable(error)})") from None
    if not isinstance(row, dict):
        raise IngestError(f"is {_kind_of(row)}; each line must be one JSON object")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_KINDS = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a text",
    type(None): "null",
}


def _kind_of(value: object) -> str:
    return _KINDS[type(value)]


def _string(row: Mapping[str, object], key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise IngestError(f'"{key}" is {_kind_of(value)}; it must be a text')
    check_characters(value, f'"{key}"')
    return value


def _row_id(row: Mapping[str, object]) -> str:
    value = row.get("id")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    found = _string({"id": value}, "id")
    row_id = (found or "").strip()
    if not row_id:
        raise IngestError('"id" is missing or empty; each row needs "id" and "text"')
    if len(row_id) > 512:
        raise IngestError(f'"id" has {len(row_id)} characters; at most 512 are allowed')
    _refuse_control(row_id, "id")
    return row_id


def _refuse_control(value: str, key: str) -> None:
    bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Zl", "Zp")), None)
    if bad is not None:
        raise IngestError(f'"{key}" has the control character U+{ord(bad):04X}; remove it')


def _allow(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise IngestError(f'"allow" is {_kind_of(value)}; it must be a list of texts')
    for entry in value:
        _check_grant(entry)
    return tuple(dict.fromkeys(value))


def _check_grant(entry: object) -> None:
    if not isinstance(entry, str):
        raise IngestError(f'"allow" holds {_kind_of(entry)}; it must be a list of texts')
    check_characters(entry, '"allow"')
    _refuse_control(entry, "allow")
    kind, _, name = entry.partition(":")
    if entry != "everyone" and (kind not in ("principal", "group") or not name.strip()):
        raise IngestError(
            f'"allow" holds {entry[:80]!r}; it must be everyone, principal:NAME or group:NAME'
        )


def _tenant(row: Mapping[str, object]) -> str | None:
    tenant = _string(row, "tenant")
    if tenant is None:
        return None
    if not tenant.strip():
        raise IngestError('"tenant" is empty; name one or leave the key out')
    _refuse_control(tenant, "tenant")
    return tenant.strip()


def _metadata(row: Mapping[str, object]) -> dict[str, object]:
    """The row's metadata, including the row's `path` if it has one."""
    value = row.get("metadata")
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise IngestError(f'"metadata" is {_kind_of(value)}; it must be an object')
    path = _string(row, "path")
    metadata = value if path is None else {"path": path, **value}
    left: list[object] = [metadata]
    while left:
        left.extend(_checked_parts(left.pop()))
    return metadata


def _checked_parts(value: object) -> list[object]:
    """Return the value's parts, one level deep, refusing what jsonb cannot store."""
    if isinstance(value, str):
        check_characters(value, '"metadata"')
    if isinstance(value, float) and not math.isfinite(value):
        raise IngestError('"metadata" has a number that is too large; write it as a text')
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []

"""The data model of a report, told to others: as TypeScript declarations and as tables for people.

Both texts are made from `schema`, so that the components and the documentation cannot drift from it.
"""

import re
from collections.abc import Mapping
from typing import Any

from cutaway.report import schema

_HEAD = "// Generated from report/schema.py by report/declarations.py: the data that the components are fed with.\n\n"


def declarations() -> str:
    """Text of `viz/components/payload.d.ts`."""
    records = _records()
    parts = [f"export type VerdictName = {_union(schema.VerdictName.__args__)};"]
    parts += [_interface(name, record) for name, record in sorted(records.items())]
    return _HEAD + "\n\n".join(parts) + "\n"


def tables() -> str:
    """One Markdown table a record, the manifest first: field, type, meaning with its unit."""
    records = _records()
    order = ["Manifest", "StudyReport", *sorted(set(records) - {"Manifest", "StudyReport"})]
    return "\n".join(_table(name, records[name]) for name in order)


def _records() -> dict[str, Any]:
    whole = schema.Manifest.model_json_schema()
    found = dict(whole["$defs"])
    found["Manifest"] = {key: value for key, value in whole.items() if key != "$defs"}
    return found


def _interface(name: str, record: Mapping[str, Any]) -> str:
    lines = [f"/** {record['description'].splitlines()[0]} */", f"export interface {name} {{"]
    for field, about in record["properties"].items():
        lines += [f"  /** {about['description']} */", f"  readonly {field}: {_type(about)};"]
    return "\n".join([*lines, "}"])


def _table(name: str, record: Mapping[str, Any]) -> str:
    rows = [f"### {name}", "", record["description"].splitlines()[0], "", "| field | type | meaning |", "|---|---|---|"]
    for field, about in record["properties"].items():
        kind = _type(about).replace("|", "\\|")
        rows.append(f"| `{field}` | `{kind}` | {about['description']} |")
    return "\n".join([*rows, ""])


def _type(about: Mapping[str, Any]) -> str:
    """A field's type in TypeScript."""
    if "$ref" in about:
        return about["$ref"].rsplit("/", 1)[1]
    if "anyOf" in about:
        return " | ".join(_type(choice) for choice in about["anyOf"])
    if "const" in about:
        return _union([about["const"]])
    if "enum" in about:
        same = set(about["enum"]) == set(schema.VerdictName.__args__)
        return "VerdictName" if same else _union(about["enum"])
    if about["type"] == "array":
        inner = _type(about["items"])
        return f"readonly ({inner})[]" if re.search(r"[ |]", inner) else f"readonly {inner}[]"
    if about["type"] == "object":
        return f"Readonly<Record<string, {_type(about['additionalProperties'])}>>"
    return {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}[
        about["type"]
    ]


def _union(values: Any) -> str:
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)

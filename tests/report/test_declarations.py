"""What others are told of the data model: fresh, and with a meaning for every field."""

from pathlib import Path

from cutaway.report import declarations, schema

ROOT = Path(__file__).parents[2]


def test_the_components_types_are_fresh() -> None:
    path = ROOT / "src/cutaway/viz/components/payload.d.ts"
    assert path.read_text(encoding="utf-8") == declarations.declarations(), (
        "write cutaway.report.declarations.declarations() to that file"
    )


def test_the_documented_fields_are_fresh() -> None:
    text = (ROOT / "docs/formats/report.md").read_text(encoding="utf-8")
    assert text.endswith(declarations.tables()), "end that page with cutaway.report.declarations.tables()"


def test_every_field_says_what_it_is() -> None:
    records = schema.Manifest.model_json_schema()
    for name, record in (records["$defs"] | {"Manifest": records}).items():
        for field, about in record["properties"].items():
            assert about.get("description"), f"{name}.{field}"

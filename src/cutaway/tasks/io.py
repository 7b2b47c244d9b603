"""Task files: JSON lines, a header and then a line a pair (docs/formats/task.md).

Reading is strict: what the schema does not know, a repeated key, a missing pair or a wrong type is an error that names
the line, because a task that lost a pair on the way would still run and give a number.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cutaway.artifacts import write_text
from cutaway.errors import DataError
from cutaway.tasks.pair import Pair, SplitName
from cutaway.tasks.rows import broken, read_text, unrepeated

FORMAT: Literal["cutaway.task"] = "cutaway.task"
VERSION: Literal[1] = 1

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Span = Annotated[list[int], Field(min_length=2, max_length=2)]
_Line = TypeVar("_Line", bound=BaseModel)


class Header(BaseModel):
    """First line of a task file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["cutaway.task"]
    version: Literal[1]
    name: str
    description: str
    metric: str
    roles: list[str]
    seed: int | None
    tokenizer: str | None = None
    n_pairs: int | None = None


class PairLine(BaseModel):
    """Every other line."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    cluster: str
    split: SplitName
    clean: str | _Ids
    corrupt: str | _Ids
    answer: str | int | _Ids
    foil: str | int | _Ids
    positions: dict[str, _Span] = Field(default_factory=dict)
    corrupt_positions: dict[str, _Span] | None = None


def write(path: Path, header: Header, pairs: Iterable[Pair]) -> None:
    """Write a task file whole or not at all."""
    lines = [header.model_dump(), *(_as_line(pair).model_dump() for pair in pairs)]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read(path: Path) -> tuple[Header, list[Pair]]:
    """Header and pairs of a task file; pair i stands on line i + 2. Raises BadTaskFile with the line and the reason."""
    text = read_text(path)
    lines = text.removesuffix("\n").split("\n")
    header = _parsed(path, 1, lines[0], Header)
    pairs = [
        _on_line(path, number, _as_pair, _parsed(path, number, line, PairLine))
        for number, line in enumerate(lines[1:], start=2)
    ]
    if header.n_pairs is not None and header.n_pairs != len(pairs):
        raise broken(
            path,
            len(lines),
            f"is the last, but the header counts {header.n_pairs} pairs and there are {len(pairs)}; restore the file",
        )
    return header, pairs


def _parsed(path: Path, number: int, line: str, schema: type[_Line]) -> _Line:
    try:
        return schema.model_validate(json.loads(line, object_pairs_hook=unrepeated))
    except json.JSONDecodeError as error:
        raise broken(
            path, number, f"is not JSON ({error.msg} at column {error.colno}); a task file has one JSON object a line"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in schema.model_fields)
        raise broken(path, number, f"{where or 'the line'}: {first['msg']}; see docs/formats/task.md") from None
    except ValueError as error:
        raise broken(path, number, str(error)) from None


def _on_line(path: Path, number: int, make: Callable[[PairLine], Pair], line: PairLine) -> Pair:
    """Build a pair; what is wrong with it keeps its kind when it has one, and gets the line."""
    try:
        return make(line)
    except DataError as error:
        if type(error) is DataError:
            raise broken(path, number, str(error)) from None
        raise type(error)(
            f"{path}, line {number}: {error}", **{**error.fields, "path": str(path), "line": number}
        ) from None


def _as_line(pair: Pair) -> PairLine:
    def listed(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    def spans(value: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
        return {role: list(span) for role, span in value.items()}

    return PairLine(
        id=pair.id,
        cluster=pair.cluster,
        split=pair.split,
        clean=listed(pair.clean),
        corrupt=listed(pair.corrupt),
        answer=listed(pair.answer),
        foil=listed(pair.foil),
        positions=spans(pair.positions),
        corrupt_positions=None if pair.corrupt_positions is None else spans(pair.corrupt_positions),
    )


def _as_pair(line: PairLine) -> Pair:
    def frozen(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def spans(value: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
        return {role: (span[0], span[1]) for role, span in value.items()}

    return Pair(
        clean=frozen(line.clean),
        corrupt=frozen(line.corrupt),
        answer=frozen(line.answer),
        foil=frozen(line.foil),
        positions=spans(line.positions),
        corrupt_positions=None if line.corrupt_positions is None else spans(line.corrupt_positions),
        id=line.id,
        cluster=line.cluster,
        split=line.split,
    )

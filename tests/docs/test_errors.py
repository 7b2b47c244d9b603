"""The page of errors: each error is on it, with a message that the code gives today."""

import inspect
import re

import pytest

from cutaway import errors
from cutaway.errors import CutawayError
from docs.pages.errors import ROWS
from tests.docs.tree import branches, leaves


def drawn() -> dict[str, str]:
    """Name -> meaning, as the tree at the top of errors.py has it."""
    lines = (inspect.getdoc(errors) or "").splitlines()
    found = (re.match(r"^[\s│├└─]+(\w+)\s{2,}(.+)$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_the_drawn_tree_is_the_tree() -> None:
    assert list(drawn()) == [kind.__name__ for branch in branches() for kind in (branch, *branch.__subclasses__())]


def test_every_class_has_its_place_and_its_meaning() -> None:
    for kind in (CutawayError, *branches(), *leaves()):
        assert kind.__module__ == "cutaway.errors"
        assert inspect.getdoc(kind)
        assert kind.__doc__ != CutawayError.__doc__ or kind is CutawayError


def test_every_error_is_on_the_page() -> None:
    assert set(ROWS) == {leaf.__name__ for leaf in leaves()}
    assert all(row.remedy for row in ROWS.values())
    # these need a signal, a machine that is full, or a cache in use: no example of a few lines raises them
    assert {name for name, row in ROWS.items() if not row.example} == {"Interrupted", "OutOfMemory"}


def test_fields_are_attributes_and_an_unknown_one_is_missing() -> None:
    error = errors.OutOfRange("no layer 9", layer=9)
    assert error.layer == 9
    assert error.fields == {"layer": 9}
    with pytest.raises(AttributeError):
        error.head  # noqa: B018


def test_the_nearest_name_is_offered() -> None:
    assert errors.did_you_mean("resid_prr", ["resid_pre", "z"]) == " Did you mean 'resid_pre'?"
    assert errors.did_you_mean("xyz", ["b", "a"]) == " Known: a, b."
    assert errors.did_you_mean("xyz", []) == ""

"""The tree of errors, walked."""

from cutaway.errors import CutawayError


def branches() -> list[type[CutawayError]]:
    """The classes below the root."""
    return list(CutawayError.__subclasses__())


def leaves() -> list[type[CutawayError]]:
    """The classes that are raised."""
    return [leaf for branch in branches() for leaf in branch.__subclasses__()]

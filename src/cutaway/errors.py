"""Everything that cutaway raises for what a caller can get wrong.

    CutawayError
    ├── UsageError            a call that cannot mean anything
    │   ├── UnknownSite           no site of that name
    │   ├── OutOfRange            layer, head, neuron, position or row that does not exist
    │   ├── UnknownName           model, task, metric or option name that is not in its list
    │   └── BadEdit               an edit whose value has the wrong shape, kind or numbers
    ├── ModelError            the model or its tokenizer
    │   ├── ModelNotFound         no embedded name, folder or hub id
    │   ├── ModelIncomplete       a folder that lacks files or tensors
    │   ├── ModelNotFinite        NaN or infinite weights
    │   ├── ModelInTraining       dropout would make runs random
    │   ├── TokenizerUnfit        no tokenizer, no BOS, no padding where one is needed
    │   ├── SiteUnavailable       this architecture does not have the site; the reason is given
    │   └── SelfCheckFailed       the audit found that a site is not what its name says
    ├── EngineError           a run
    │   ├── EditNeverApplied      an edit that did not fire
    │   ├── EditFailed            an exception inside a caller's edit function
    │   ├── Interrupted           stopped by the user; says what was kept
    │   └── OutOfMemory           says which batch would fit
    ├── DataError             a task and its files
    │   ├── Misaligned            clean and corrupt prompts of different token lengths
    │   ├── TokenNotSingle        an answer that the metric needs as one token
    │   ├── AnswersEqual          answer and foil are the same
    │   ├── EmptyTask             nothing to measure
    │   ├── BadTaskFile           a broken line; says which
    │   └── NoBehavior            the model does not show the behavior; nothing to study
    ├── ArtifactError         a saved result
    │   ├── WrongModel            made for another model
    │   └── BrokenEvidence        bytes that no longer match their hash
    └── ClaimError            a claim
        ├── NoMinimumEffect       a prediction without a threshold
        ├── TooFewClusters        fewer independent units than the test needs
        ├── ClaimChanged          frozen text, data, model or code differ from what was registered
        └── SplitOpened           the confirm split was already opened for this plan

Each message gives the value, the rule and the remedy; the fields carry the same as data.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class CutawayError(Exception):
    """Base of the tree. `fields` holds what the message says, as data; each field is an attribute too."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields: dict[str, Any] = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


class UsageError(CutawayError):
    """A call that cannot mean anything."""


class UnknownSite(UsageError):
    """No site of that name."""


class OutOfRange(UsageError):
    """A layer, head, neuron, position or row that does not exist."""


class UnknownName(UsageError):
    """A model, task, metric or option name that is not in its list."""


class BadEdit(UsageError):
    """An edit whose value has the wrong shape, kind or numbers."""


class ModelError(CutawayError):
    """The model or its tokenizer."""


class ModelNotFound(ModelError):
    """No embedded name, folder or hub id."""


class ModelIncomplete(ModelError):
    """A model folder that lacks files or tensors."""


class ModelNotFinite(ModelError):
    """NaN or infinite weights."""


class ModelInTraining(ModelError):
    """The model is in training mode: dropout would make runs random."""


class TokenizerUnfit(ModelError):
    """No tokenizer, no BOS, or no padding token where one is needed."""


class SiteUnavailable(ModelError):
    """This architecture does not have the site; the reason is given."""


class SelfCheckFailed(ModelError):
    """The audit found that a site is not what its name says."""


class EngineError(CutawayError):
    """A run."""


class EditNeverApplied(EngineError):
    """An edit that did not fire."""


class EditFailed(EngineError):
    """An exception inside a caller's edit function. The model is left as it was."""


class Interrupted(EngineError):
    """Stopped by the user; says what was kept."""


class OutOfMemory(EngineError):
    """The machine's memory does not hold the batch; says which batch would fit."""


class DataError(CutawayError):
    """A task and its files."""


class Misaligned(DataError):
    """Clean and corrupt prompts of different token lengths."""


class TokenNotSingle(DataError):
    """An answer that the metric needs as one token."""


class AnswersEqual(DataError):
    """Answer and foil are the same."""


class EmptyTask(DataError):
    """Nothing to measure."""


class BadTaskFile(DataError):
    """A task file with a broken line; says which."""


class NoBehavior(DataError):
    """The model does not show the behavior: there is nothing to study."""


class ArtifactError(CutawayError):
    """A saved result."""


class WrongModel(ArtifactError):
    """An artifact that was made for another model."""


class BrokenEvidence(ArtifactError):
    """Bytes that no longer match their hash."""


class ClaimError(CutawayError):
    """A claim."""


class NoMinimumEffect(ClaimError):
    """A prediction without a threshold."""


class TooFewClusters(ClaimError):
    """Fewer independent units than the test needs."""


class ClaimChanged(ClaimError):
    """Frozen text, data, model or code differ from what was registered."""


class SplitOpened(ClaimError):
    """The confirm split was already opened for this plan."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message: the nearest known name, or the list of all when it is short.

    >>> did_you_mean("resid_prr", ["resid_pre", "resid_post"])
    " Did you mean 'resid_pre'?"
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f" Known: {shown}." if names else ""

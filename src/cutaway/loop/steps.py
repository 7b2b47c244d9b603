"""Steps of a study that survive an interruption: each finished result is a file named by what it rests on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from filelock import FileLock, Timeout

from cutaway.artifacts import digest
from cutaway.claims.registration import code
from cutaway.errors import ArtifactError, Interrupted, UsageError
from cutaway.models import Model
from cutaway.tasks import Task

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called by long steps with (done, total, what is being done)."""


@runtime_checkable
class Saved(Protocol):
    """A result that can be written and read back."""

    def save(self, path: Path) -> Any: ...


T = TypeVar("T", bound=Saved)


def steps_folder(out: Path) -> Path:
    """Where the steps of a study into `out` are kept: beside it, hidden."""
    place = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow links
    return place.parent / f".{place.name}.steps"


def silent(done: int, total: int, label: str) -> None:
    """No progress."""


@dataclass
class Steps:
    """The working folder of one study: finished results by content hash, and what to say when it is stopped."""

    folder: Path
    model: Model
    task: Task
    progress: Progress = silent
    fresh: bool = False
    """Compute every step again, also finished ones."""
    kept: list[str] = field(default_factory=list)
    """Names of the steps that are finished and on disk."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The folder is this process's own while this is open; UsageError when it cannot be, or cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"another process is studying into {self.folder}; wait for it, or choose another folder",
                out=self.folder,
            ) from None
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written ({error}); choose another folder", out=self.folder
            ) from error
        try:
            yield
        finally:
            lock.release()

    def do(
        self,
        name: str,
        load: Callable[[Path, Model], T],
        make: Callable[[Callable[[int, int], None]], T],
        **options: Any,
    ) -> T:
        """The result of a step: read back when model, task, options and code are the same, else made and written."""
        key = digest([name, self.model.digest, self.task.digest, code()["digest"], options])
        path = self.folder / f"{name.replace(' ', '-')}-{key[:16]}.safetensors"
        if path.exists() and not self.fresh:
            try:
                found = load(path, self.model)
                self.progress(1, 1, f"{name} (kept from before)")
                self.kept.append(name)
                return found
            except ArtifactError:  # a damaged file is made again
                path.unlink()
        try:
            found = make(lambda done, total: self.progress(done, total, name))
            found.save(path)
        except KeyboardInterrupt:
            raise self.interrupted(name) from None
        self.kept.append(name)
        return found

    def interrupted(self, name: str) -> Interrupted:
        """The error that says where it stopped and what was kept."""
        kept = ", ".join(self.kept) or "nothing yet"
        return Interrupted(
            f"stopped in step {name!r}. Kept in {self.folder}: {kept}. Run the same study again to go on from there",
            step=name,
            kept=list(self.kept),
        )

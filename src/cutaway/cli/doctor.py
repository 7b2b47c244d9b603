"""`cutaway doctor`: whether this environment can do the work, and the line that mends what it cannot."""

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import typer

from cutaway.cli import console
from cutaway.cli.command import AsJson
from cutaway.errors import CutawayError

PROBE = "induction-2l"
"""The embedded model that is loaded and audited."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    """What to type when it is not ok."""
    needed: bool = True
    """False: only some of the work needs it."""


def doctor(as_json: AsJson = False) -> None:
    """Check the environment: versions, devices, offline readiness, and the embedded model, loaded and audited."""
    console.python(f"import cutaway\n\ncutaway.load({PROBE!r}).body.statuses")
    checks = [check for look in LOOKS for check in look()]
    healthy = all(check.ok for check in checks if check.needed)
    if as_json:
        console.emit({"healthy": healthy, "checks": checks})
    else:
        marks = {(True, True): "ok", (True, False): "ok", (False, True): "MISSING", (False, False): "absent"}
        console.table(
            ("", "what", "found"), [(marks[check.ok, check.needed], check.name, check.found) for check in checks]
        )
        for check in checks:
            if not check.ok:
                console.show(f"{'To mend' if check.needed else 'Optional'}: {check.fix}")
    if not healthy:
        raise typer.Exit(1)


def _python() -> list[Check]:
    return [
        Check(
            "python",
            sys.version_info >= (3, 11),
            f"{platform.python_version()} on {platform.system()}",
            "install Python 3.11 or newer",
        )
    ]


def _packages() -> list[Check]:
    from packaging.requirements import Requirement

    try:
        own = metadata.distribution("cutaway")
    except metadata.PackageNotFoundError:
        return [Check("cutaway", False, "imported, but not installed", "python -m pip install -e . (in its folder)")]
    checks = [Check("cutaway", True, own.version)]
    for line in own.requires or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        checks.append(_package(wanted.name, str(wanted.specifier)))
    return [*checks, _package("accelerate", "", "to spread a model over devices")]


def _package(name: str, specifier: str, use: str = "") -> Check:
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(
            name,
            False,
            "not installed",
            f"python -m pip install '{name}{specifier}'" + (f"   ({use})" if use else ""),
            needed=not use,
        )
    fits = SpecifierSet(specifier).contains(version, prereleases=True)
    return Check(
        name, fits, version if fits else f"{version}, needs {specifier}", f"python -m pip install '{name}{specifier}'"
    )


def _device() -> list[Check]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(names) or ("mps" if torch.backends.mps.is_available() else "cpu only")
    return [Check("device", True, f"{found}; {torch.get_num_threads()} threads")]


def _storage() -> list[Check]:
    """Reports are written to the working directory, models are kept in the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    kept = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    offline = "; offline mode is on" if constants.HF_HUB_OFFLINE else ""
    return [
        Check(
            "working directory",
            _writable(Path.cwd()),
            str(Path.cwd()),
            "change to a folder that you may write to, or give --out",
        ),
        Check("models kept for offline use", True, f"{kept} in {cache}{offline}"),
    ]


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _embedded_model() -> list[Check]:
    import cutaway
    from cutaway.models import embedded_names

    name, again = f"model {PROBE}", "python -m pip install --force-reinstall --no-deps cutaway"
    if PROBE not in embedded_names():
        return [Check(name, False, "its files are not in the package", again)]
    began = time.monotonic()
    try:
        statuses = cutaway.load(PROBE).body.statuses.values()
    except CutawayError as error:
        return [Check(name, False, f"{type(error).__name__}: {error}", again)]
    verified = sum(status.state == "verified" for status in statuses)
    found = f"{verified} of {len(statuses)} sites verified in {time.monotonic() - began:.1f} s; needs no network"
    return [Check(name, verified > 0, found)]


LOOKS: tuple[Callable[[], list[Check]], ...] = (_python, _packages, _device, _storage, _embedded_model)
"""What is looked at, in the order of the table."""

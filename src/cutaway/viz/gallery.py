"""Any figures on one offline page."""

from collections.abc import Sequence
from pathlib import Path

from cutaway.artifacts import finite, plain
from cutaway.errors import UsageError
from cutaway.figures import Figure
from cutaway.viz.html import page


def gallery(title: str, figures: Sequence[Figure]) -> str:
    """The page as text. Raises UsageError when there is nothing to show."""
    if not figures:
        raise UsageError(f"page {title!r}: there are no figures to show")
    payload = {
        "title": title,
        "figures": [{"kind": type(figure).__name__, **finite(plain(figure))} for figure in figures],
    }
    told = "\n".join(f"{figure.title}. {figure.sentence}" for figure in figures)
    return page(title, payload, entry="gallery-page.js", element="cutaway-gallery", plain_text=f"{title}\n{told}")


def write(path: str | Path, title: str, figures: Sequence[Figure]) -> None:
    """Write the page to a file. Raises UsageError for a folder."""
    if Path(path).is_dir():
        raise UsageError(f"{path}: this is a folder; give a file in it, such as figures.html", path=str(path))
    Path(path).write_text(gallery(title, figures), encoding="utf-8")

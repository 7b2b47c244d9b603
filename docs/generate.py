"""Writes the pages that follow from the code: docs/cli.md, docs/errors.md, docs/models.md and docs/zoo.md.

python docs/generate.py            write them
python docs/generate.py --check    fail when one of them is not what the code says
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from docs.pages import cli, errors, models, zoo  # noqa: E402

PAGES = {"cli.md": cli.page, "errors.md": errors.page, "models.md": models.page, "zoo.md": zoo.page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them; 1 when a page is stale."""
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in arguments:
            stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs` and commit what it wrote\n")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

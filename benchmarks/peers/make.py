"""A virtual environment for each peer, with the versions that benchmarks/peers/NAME.txt pins.

    python benchmarks/peers/make.py [NAME ...]

Each lies in build/peers/NAME. It finds torch, transformers and what else cutaway's own environment holds by a path
file, so that they are not installed again; what a peer pins otherwise is installed in its own and found first.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = sorted(path.stem for path in HERE.glob("*.txt"))


def make(name: str) -> Path:
    """The interpreter of a peer's environment; made, and renewed when its pins changed."""
    pins, folder = HERE / f"{name}.txt", ROOT / "build" / "peers" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists() and ready.read_text() == pins.read_text():
        return python
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = [sysconfig.get_paths()["purelib"], str(ROOT / "src")]
    (folder / "lib" / version / "site-packages" / "shared.pth").write_text("\n".join(shared) + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)]
    subprocess.run(command, check=True)
    ready.write_text(pins.read_text())
    return python


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PEERS:
        print(make(wanted))

"""What `import cutaway` costs over `import torch`, in CPU seconds: the two are measured in turn, in fresh processes.

    python benchmarks/import_time.py [ROUNDS]

Bound: 0.3 s more than torch alone.
"""

import resource
import statistics
import subprocess
import sys

BOUND_S = 0.3


def cpu_seconds(statement: str) -> float:
    """User and system time of a fresh Python that runs `statement`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> int:
    """Print the medians, their difference and ratio; 1 when the bound is passed."""
    for statement in ("import torch", "import torch, cutaway"):
        cpu_seconds(statement)  # the first run writes bytecode and fills the disk cache
    pairs = [(cpu_seconds("import torch"), cpu_seconds("import torch, cutaway")) for _ in range(rounds)]
    torch_s, both_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    more_s = statistics.median(both - torch for torch, both in pairs)
    print(f"import torch            {torch_s:.3f} CPU s (median of {rounds})")
    print(
        f"import torch, cutaway   {both_s:.3f} CPU s: {both_s / torch_s:.3f} times, {more_s:+.3f} s (bound {BOUND_S} s)"
    )
    return int(more_s > BOUND_S)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))

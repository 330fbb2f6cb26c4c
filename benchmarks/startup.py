"""How long a user waits before anything happens: whole processes of the command line.

    python benchmarks/startup.py [--repeats 5]

Prints the median seconds of `--help`, `list` and a mistyped method, after one warm-up each.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["list"], ["list", "suites"], ["run", "--methods", "magnitud"])


def seconds(arguments: list[str]) -> float:
    """Wall seconds of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Time each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for command in COMMANDS:
        seconds(command)
        times = [seconds(command) for _ in range(repeats)]
        print(f"{' '.join(command):<30}{statistics.median(times):6.2f} s   ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()

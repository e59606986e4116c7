"""Time to import the package and to print the help, each in new processes.

python benchmarks/startup.py --out startup.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

from common import environment, print_table, write_json

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import mdl_physpre": [sys.executable, "-c", "import mdl_physpre"],
    "physpre --help": [sys.executable, "-m", "mdl_physpre.cli.main", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="startup.json")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(given.repeats):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    rows = [{"process": k, "median, s": median(v), "least, s": min(v)} for k, v in seconds.items()]
    print_table(f"start-up, {given.repeats} processes each", rows)
    write_json(given.out, {"environment": environment(), "seconds": seconds})


if __name__ == "__main__":
    main()

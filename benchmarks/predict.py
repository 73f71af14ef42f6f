"""Wall-clock time and peak memory of a whole `nkf predict`, from start to end, after one run to warm the disk cache.

python benchmarks/predict.py --nkf .venv-demo/bin/nkf
"""

import argparse
import os
import statistics
import subprocess
import time


def run_once(command: list[str]) -> tuple[float, float]:
    """Seconds, and MB of peak resident memory, of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nkf", default="nkf")
    parser.add_argument("--image", default="examples/eileen_collins.jpg")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    command = [options.nkf, "predict", options.image]
    run_once(command)
    seconds, megabytes = zip(*(run_once(command) for _ in range(options.runs)), strict=True)
    print(f"{' '.join(command)}: {options.runs} runs, median {statistics.median(seconds):.2f} s", end="")
    print(f" ({min(seconds):.2f}-{max(seconds):.2f}), peak memory {max(megabytes):.0f} MB")


if __name__ == "__main__":
    main()

"""Whether any file can make a reader fail in another way than by one line that says what is wrong with it.

    pip install atheris        # Linux, Python 3.11 to 3.13
    python benchmarks/fuzz.py --minutes 60 --json benchmarks/results/fuzz.json

Coverage-guided fuzzing (libFuzzer, by atheris) of every reader in `benchmarks/fuzz_targets.py`: pictures,
configurations, sidecars, weights, packs, soft labels, the tables of data sets. Each starts from good files. The time is
shared evenly between them, in rounds; a turn is a process of its own, forked where all modules are loaded. What counts:

* a crash: any exception but `NkfError` (`ImageError` is one), or the death of the process;
* a hang: an input that takes more than 10 seconds;
* memory: an input that takes the process over 2 GB.

Inputs that do one of these are saved below ``runs/fuzz/found``, and the corpus that was gathered below
``runs/fuzz/corpus``, from where the next call goes on. ``--replay FILE`` reads one such input again. The result is
written after every slice of time. Exit code 1 if anything was found.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HANG_SECONDS = 10
MEMORY_MB = 2048
ADDRESS_SPACE = 16 << 30  # a runaway input shall end itself, not the machine
LARGEST_INPUT = 1 << 14
FOUND = Path("runs/fuzz/found")
CORPUS = Path("runs/fuzz/corpus")
END_SECONDS = 20  # that a process may take beyond its time
VALUE = re.compile(rb'-?\d[\d.e+-]*|"[^"\n]*"|\w+')
ODD_VALUES = (
    b"", b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 25, b"1" * 5000, b"0.5", b"null", b"true", b'""', b"[]",
    b"{}", b"[[]]", b'{"a": 1}', b"[1, 2]", b'"x"', b"x" * 300, b"../../x", b"/", b"\xff", b"\xef\xbb\xbf", b"\\u0000",
    b"\t", b"\n", b"*a", b"&a x", b"!!binary x", b"!!set {x}", b"2001-01-01", b"0x10", b"1_000", b"\xc2\xa0",
    b"\xd9\xa3", b"~", b"- ", b"? ",
)  # fmt: skip
INSTRUMENTED = ["nkf", "PIL", "yaml", "json", "csv", "zipfile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all readers together")
    parser.add_argument("--rounds", type=int, default=3, help="into which the time of a reader is cut")
    parser.add_argument("--only", nargs="*", default=[], help="readers; by default all")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--replay", type=Path, help="an input that was found")
    options = parser.parse_args()
    if options.replay:
        replay(options.replay)
    else:
        sys.exit(int(fuzz_all(options)))


@dataclass
class Tally:
    """What was done and found of one reader."""

    executions: int = 0
    seconds: float = 0.0
    crashes: dict[str, str] = field(default_factory=dict)  # what and where -> the input's file
    hangs: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    corpus: int = 0

    @property
    def found(self) -> int:
        return len(self.crashes) + len(self.hangs) + len(self.memory)


# The process that shares out the time


def fuzz_all(options: argparse.Namespace) -> bool:
    """Let every reader have its turns; returns whether anything was found."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz_targets import TARGETS

    names = options.only or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        sys.exit(f"no readers {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    tallies = {name: Tally() for name in names}
    share = options.minutes * 60 / len(names) / options.rounds
    for _ in range(options.rounds):
        for name in names:
            take_turn(name, share, tallies[name])
            report(options, tallies)
            print(json.dumps({name: vars(tallies[name])}), flush=True)
    return any(tally.found for tally in tallies.values())


def take_turn(name: str, seconds: float, tally: Tally) -> None:
    """Fuzz one reader for some seconds, starting again where an input ends the process."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 1:
        before, begun = set(found_files(name)), time.monotonic()
        process = multiprocessing.get_context("fork").Process(target=work, args=(name, left))
        process.start()
        process.join(left + END_SECONDS)
        new = sorted(set(found_files(name)) - before)
        if process.is_alive():
            process.kill()
            process.join()
            tally.hangs.append("the process did not end in its time")
        elif process.exitcode and not new:
            tally.crashes[f"death of the process, code {process.exitcode}"] = str(FOUND / f"{name}.log")
        tally.seconds = round(tally.seconds + time.monotonic() - begun, 1)
        add_up(name, tally, new)


def work(name: str, seconds: float) -> None:
    """Fuzz one reader in a process of its own, whose output goes to a file."""
    FOUND.mkdir(parents=True, exist_ok=True)
    with (FOUND / f"{name}.log").open("wb") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    with open(os.devnull, "w") as sys.stdout:  # readers may print
        Worker(name).run(seconds)


def found_files(name: str) -> list[str]:
    return [str(file) for file in (FOUND / name).glob("*-*")]


def add_up(name: str, tally: Tally, new: list[str]) -> None:
    """Add what a process wrote down, and the inputs that libFuzzer saved when one of them ended it."""
    status = FOUND / name / "status.json"
    if status.exists():
        content = json.loads(status.read_text())
        tally.executions += content["executions"]
        tally.peak_mb = max(tally.peak_mb, content["peak_mb"])
        tally.crashes |= {key: file for key, file in content["crashes"].items() if key not in tally.crashes}
        tally.memory += [file for file in content["memory"] if file not in tally.memory]
        status.unlink()
    tally.corpus = sum(1 for _ in (CORPUS / name).iterdir())
    tally.hangs += [file for file in new if Path(file).name.startswith("timeout-")]
    tally.memory += [file for file in new if Path(file).name.startswith("oom-")]
    for file in new:
        if Path(file).name.startswith("crash-"):
            tally.crashes[f"death of the process, {Path(file).name}"] = file


def report(options: argparse.Namespace, tallies: dict[str, Tally]) -> None:
    if not options.json:
        return
    from nkf.files import replacing
    from nkf.machine import machine

    result = {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/fuzz.py", *sys.argv[1:]]),
        "minutes": round(sum(tally.seconds for tally in tallies.values()) / 60, 1),
        "executions": sum(tally.executions for tally in tallies.values()),
        "found": sum(tally.found for tally in tallies.values()),
        "readers": {name: vars(tally) for name, tally in tallies.items()},
    }
    with replacing(options.json) as file:
        file.write_text(json.dumps(result, indent=1) + "\n")


# The process that fuzzes one reader


class Worker:
    """Feeds one reader, and keeps going after exceptions."""

    def __init__(self, name: str) -> None:
        from fuzz_targets import TARGETS

        from nkf.errors import NkfError

        self._known = NkfError
        self._name, self._target = name, TARGETS[name]
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self._target.prepare(self._folder)
        self._good = [(self._folder / file).read_bytes() for file in self._target.fuzzed]
        self._status: dict[str, Any] = {"executions": 0, "peak_mb": 0.0, "crashes": {}, "memory": []}
        self._saved = 0.0

    def run(self, seconds: float) -> None:
        """Fuzz for so long; libFuzzer ends the process."""
        import atheris
        from fuzz_files import NASTY

        corpus, found = CORPUS / self._name, FOUND / self._name
        for folder in (corpus, found):
            folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(self._good):
            (corpus / f"good-{number:03}").write_bytes(bytes([number]) + content)
            for index, nasty in enumerate(NASTY if len(self._good) < 10 else ()):
                (corpus / f"nasty-{number:03}-{index:03}").write_bytes(bytes([number]) + nasty)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        arguments = [
            sys.argv[0], str(corpus), f"-max_total_time={round(seconds)}", f"-timeout={HANG_SECONDS}",
            f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LARGEST_INPUT}", f"-artifact_prefix={found}/", "-keep_seed=1",
        ]  # fmt: skip
        atheris.Setup(arguments, self.feed, custom_mutator=self.mutate)
        atheris.Fuzz()

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Change bytes at random, or put something odd in the place of a value in a text."""
        import atheris

        generator = random.Random(seed)
        values = [] if b"\0" in data[1:200] else list(VALUE.finditer(data, 1))
        if not values or generator.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        value = generator.choice(values)
        return (data[: value.start()] + generator.choice(ODD_VALUES) + data[value.end() :])[:max_size]

    def feed(self, data: bytes) -> None:
        """Read one input: the number of the file that it stands for, and the file's content."""
        number = data[0] % len(self._good) if data else 0
        try:
            self.read(number, data[1:])
        except self._known:
            pass
        except Exception as error:
            self.keep(data, what_and_where(error))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if peak_mb > MEMORY_MB >= self._status["peak_mb"]:
            self._status["memory"].append(self.save("memory", data))
        self._status["peak_mb"] = round(peak_mb, 1)
        self._status["executions"] += 1
        if time.monotonic() - self._saved > 1:
            self.tell()

    def read(self, number: int, content: bytes) -> None:
        """Put the content in the place of the good file, and let it be read."""
        file = self._folder / self._target.fuzzed[number]
        file.write_bytes(content)
        try:
            self._target.read(self._folder, file)
        finally:
            file.write_bytes(self._good[number])

    def keep(self, data: bytes, key: str) -> None:
        if key not in self._status["crashes"]:
            self._status["crashes"][key] = self.save("exception", data)
            self.tell()

    def save(self, kind: str, data: bytes) -> str:
        file = FOUND / self._name / f"{kind}-{hashlib.sha1(data).hexdigest()}"
        file.write_bytes(data)
        return str(file)

    def tell(self) -> None:
        """Write down what is known so far: the process may end at any input."""
        file = FOUND / self._name / "status.json"
        file.with_suffix(".partial").write_text(json.dumps(self._status))
        file.with_suffix(".partial").replace(file)
        self._saved = time.monotonic()

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def what_and_where(error: Exception) -> str:
    """Type of an exception, and the last of our lines that it came through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}nkf{os.sep}" in frame.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {place}"


def replay(file: Path) -> None:
    """Read an input that was found, for its traceback."""
    worker, data = Worker(file.parent.name), file.read_bytes()
    try:
        worker.read(data[0] % len(worker._good) if data else 0, data[1:])
    finally:
        worker.close()


if __name__ == "__main__":
    main()

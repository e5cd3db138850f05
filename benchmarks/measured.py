"""`make measured`: the commands of docs/measured.md, their results as JSON, the page and its chart.

    python -m benchmarks.measured --data DATA               every subject, hours
    python -m benchmarks.measured --data DATA cache search  these
    python -m benchmarks.measured --list                    names, needs and minutes
    python -m benchmarks.measured --render                  page and chart from what is known

Each subject is one command, run as it is printed on the page. Nothing else should run meanwhile.
"""

import argparse
import gzip
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import psutil

from benchmarks.measured_page import Result, render, tables

ROOT = Path(__file__).parents[1]
RESULTS, WORK = ROOT / "docs" / "measured", ROOT / ".measured"
SQUAD, HOTPOT, CORPUS = "eval_squad2.jsonl.gz", "eval_hotpot.jsonl.gz", "corpus_wiki.jsonl.gz"
DOCUMENTS = "documents.jsonl"
_DOCUMENTS = 500


@dataclass(frozen=True)
class Subject:
    """A command whose output is a table, or some lines at its end.

    needs: files of the data folder; minutes: on two cores of a Zen 4; lines: how many last lines
    of the output are the result, where it is no table; peer: the option that names a Python.
    """

    name: str
    command: str
    minutes: int
    needs: tuple[str, ...] = ()
    lines: int = 0
    peer: str | None = None


_EVAL = f"--corpus {CORPUS} -k 1,3,5 --out {{work}}"
SUBJECTS = (
    Subject("first-token", "membank bench ttft -n 20 -k 1,5,20", 5, peer="--llama-python"),
    Subject("decoding", "membank bench decode -n 3", 3, peer="--llama-python"),
    Subject("encoding", "membank bench encode -n 3 --document-tokens 1000000", 12),
    Subject("cache", "membank bench cache -n 10", 3),
    Subject("sealed", "membank bench vault -n 40", 2),
    Subject("neighbours", "membank bench neighbours", 3),
    Subject("service", "membank bench serve", 8),
    Subject("queue", f"membank bench queue {DOCUMENTS} --workers 2", 8, (CORPUS,)),
    Subject("language", f"membank bench language {CORPUS} -n 25 -k 5", 2, (CORPUS,)),
    Subject("edits", f"membank bench edit {SQUAD} -n 60", 5, (SQUAD,)),
    Subject("long", f"membank bench long {SQUAD} -n 30 -k 3", 5, (SQUAD,)),
    Subject(
        "size",
        f"membank bench frontier --squad {SQUAD} --hotpot {HOTPOT} -n 300,200 --settings"
        " int8,rotated4,auto,reconstruction:0.5+match@int8 --out {work}",
        30,
        (SQUAD, HOTPOT),
    ),
    Subject(
        "size-trained",
        f"membank bench frontier --squad {SQUAD} --hotpot {HOTPOT} -n 300,200 --settings int8,auto"
        " --adapter auto --out {work}",
        25,
        (SQUAD, HOTPOT),
    ),
    Subject("quality-squad", f"membank eval {SQUAD} -n 1000 {_EVAL}", 90, (SQUAD, CORPUS)),
    Subject("quality-hotpot", f"membank eval {HOTPOT} {_EVAL}", 60, (HOTPOT, CORPUS)),
    Subject(
        "search",
        f"membank bench search --corpus {CORPUS}",
        30,
        (CORPUS,),
        peer="--langchain-python",
    ),
    Subject("rights", "make rights SEED=measured", 20, lines=2),
    Subject("fuzz", "make fuzz SEED=41", 10, lines=1),
    Subject("chaos", "make chaos SEED=measured", 15, lines=1),
    Subject("soak", "make soak SECONDS=3600 SEED=measured", 65, lines=6),
    Subject("tests", "make test", 10, lines=1),
)


def words(subject: Subject, data: Path | None, peers: dict[str, Path]) -> list[str]:
    """What is run: files by their place, a folder for what a run writes, a Python of the peer."""
    places = {name: str(_place(name, data)) for name in (*subject.needs, DOCUMENTS) if data}
    given = [
        places.get(word, word.replace("{work}", str(WORK / subject.name)))
        for word in shlex.split(subject.command)
    ]
    if subject.peer in peers:
        given += [subject.peer, str(peers[subject.peer])]
    return given


def missing(subject: Subject, data: Path | None) -> list[str]:
    """The files that a subject needs and that are not in the data folder."""
    return [name for name in subject.needs if data is None or not (data / name).is_file()]


def measure(subject: Subject, data: Path | None, peers: dict[str, Path]) -> Result:
    """Run a subject. Raises CalledProcessError when its command fails."""
    started = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words(subject, data, peers),
        cwd=ROOT,
        env=os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found, notes = tables(done.stdout)
    if subject.lines:
        notes = [line for line in done.stdout.splitlines() if line.strip()][-subject.lines :]
    command = subject.command.replace("{work}", subject.name)
    if subject.peer in peers:
        command += f" {subject.peer} PYTHON"
    return Result(
        subject.name,
        command,
        machine(),
        program(),
        datetime.now(UTC).date().isoformat(),
        round(time.monotonic() - started),
        found,
        notes,
    )


def machine() -> str:
    """Processor, cores, memory and what computes, as a table's line names them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    narrow = "bfloat16" if "avx512_bf16" in known.get("flags", "") else "no bfloat16"
    return (
        f"{known.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores"
        f" ({narrow}), {psutil.virtual_memory().total / 2**30:.0f} GiB, torch {version('torch')}"
    )


def program() -> str:
    """Membank's version, and the commit where there is a repository."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = said.stdout.strip()
    return f"Membank {version('membank')}{f' ({commit})' if commit else ''}"


def _place(name: str, data: Path) -> Path:
    return WORK / DOCUMENTS if name == DOCUMENTS else data / name


def _documents(corpus: Path) -> None:
    """The first passages of the corpus, as documents to be ingested."""
    with gzip.open(corpus, "rt") as lines:
        (WORK / DOCUMENTS).write_text("".join(islice(lines, _DOCUMENTS)))


def _list(data: Path | None) -> None:
    for one in SUBJECTS:
        lacking = missing(one, data)
        print(
            f"{one.name:<15} {one.minutes:>3} min  {one.command}"
            + (f"   (needs {', '.join(lacking)})" if lacking else "")
        )


def _run(chosen: Sequence[Subject], data: Path | None, peers: dict[str, Path]) -> int:
    """How many failed. What is there is kept after each, so that a run can be cut off."""
    failed = 0
    WORK.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if data is not None and (data / CORPUS).is_file():
        _documents(data / CORPUS)
    for number, subject in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {subject.name}"
        if lacking := missing(subject, data):
            print(
                f"{head}: skipped, {', '.join(lacking)} is not in --data (docs/how-to/measure.md)"
            )
            continue
        print(f"{head}: {subject.command}, some {subject.minutes} min", flush=True)
        try:
            result = measure(subject, data, peers)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{head}: FAILED, {error}")
            failed += 1
            continue
        text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
        (RESULTS / f"{subject.name}.json").write_text(text + "\n")
        render(RESULTS, ROOT / "docs")
        print(f"{head}: done in {result.seconds} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjects", nargs="*", help="names of --list; all of them by default")
    parser.add_argument("--data", type=Path, help="folder of question files and passages")
    parser.add_argument("--llama-python", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument("--langchain-python", type=Path, help="one that has langchain-postgres")
    parser.add_argument("--list", action="store_true", help="what can be measured")
    parser.add_argument("--render", action="store_true", help="the page from what was measured")
    given = parser.parse_args()
    by_name = {subject.name: subject for subject in SUBJECTS}
    if unknown := [name for name in given.subjects if name not in by_name]:
        parser.error(f"{unknown[0]} is not a subject: --list names them")
    data = given.data.resolve() if given.data else None
    if given.list:
        _list(data)
    elif given.render:
        render(RESULTS, ROOT / "docs")
    else:
        peers = {
            f"--{name.replace('_', '-')}": getattr(given, name)
            for name in ("llama_python", "langchain_python")
            if getattr(given, name)
        }
        chosen = [by_name[name] for name in given.subjects] or list(SUBJECTS)
        sys.exit(bool(_run(chosen, data, peers)))


if __name__ == "__main__":
    main()

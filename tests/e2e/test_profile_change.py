"""A bank's codec is changed by a second worker while the first one and a reader go on."""

import os
import subprocess
import sys
from pathlib import Path

from app.answer.ask import ask
from app.answer.retrieval import Reader
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from tests.e2e.conftest import Run, make_tenant
from tests.edges import bank_now

QUESTION = "What colour is the badge of a visitor?"
WHERE = ("--tenant", "change", "--bank", "handbook", "--as", "alice")
INT8 = {"MEMBANK_CODEC": "int8"}


def test_a_bank_changes_its_codec_and_answers_all_the_time(
    stack: Stack, membank_process: Run, tmp_path: Path
) -> None:
    make_tenant("change", ("alice", []))
    file = tmp_path / "badge.md"
    file.write_text("# Badges\n\nThe badge of a visitor is orange and is worn on the chest.\n")
    ingest([file], "change", "handbook", None, False, True)
    reader = Reader.of("change", "handbook", "alice")
    assert "orange" in ask(reader, QUESTION).answer
    done = membank_process("bank", "reencode", "handbook", "--tenant", "change", **INT8)
    assert done.returncode == 0, done.stderr
    again = membank_process("bank", "reencode", "handbook", "--tenant", "change")
    assert again.returncode == 1
    assert "already" in again.stderr
    shown = membank_process("status").stdout
    assert "0 of 1 chunks, 1 wait for workers of that profile" in shown
    assert "-> int8" in shown

    def switched() -> bool:
        assert "orange" in ask(reader, QUESTION).answer
        bank = bank_now(reader.asker.tenant or 0, reader.bank)
        return bank.next_profile is None and bank.spec["codec"] == "int8"

    worker = subprocess.Popen(
        [sys.executable, "-m", "workers.worker"],
        env=os.environ | INT8,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(switched, 120)
        # What is new is done by the worker of the profile that serves now.
        file.write_text("# Badges\n\nThe badge of a visitor is purple and is worn on the chest.\n")
        report = ingest([file], "change", "handbook", None, False, True)
        assert (report.pending, report.failed) == (0, [])
    finally:
        worker.terminate()
        worker.wait(timeout=60)
    assert "purple" in ask(reader, QUESTION).answer
    told = membank_process("ask", QUESTION, *WHERE)
    assert "purple" in told.stdout, told.stderr

"""The chaos run's verdict sees what it is there to see."""

from pathlib import Path

import psycopg
import pytest

from tests.chaos.verdict import _left_over, _traces
from tests.conftest import Company, work_off


@pytest.fixture
def whole(company: Company) -> Company:
    company.store("a", "The badge is orange.\n\nThe door is blue.")
    work_off()
    return company


def test_a_whole_bank_has_no_fault(
    whole: Company, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    assert list(_left_over(superuser)) == []
    assert list(_traces(superuser, ["orange"], tmp_path)) == []


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        ("DELETE FROM memory_blob", "2 chunks without exactly one blob"),
        ("DELETE FROM memory_key", "2 chunks without exactly one key"),
        ("DELETE FROM document", "2 chunks without document"),
        ("DELETE FROM chunk", "2 keys without chunk"),
        ("UPDATE document SET text = 'other'", "1 documents whose hash is not that of their text"),
        ("UPDATE document SET revision = 7", "1 documents whose chunks are of another revision"),
    ],
)
def test_what_is_amiss_is_named(
    whole: Company, superuser: psycopg.Connection, sabotage: str, says: str
) -> None:
    with superuser.transaction(force_rollback=True):
        # Without triggers, foreign keys among them.
        superuser.execute("SET LOCAL session_replication_role = replica")
        for table in ("document", "chunk", "memory_key", "memory_blob"):
            superuser.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        superuser.execute(sabotage)
        assert says in list(_left_over(superuser))


def test_a_trace_of_deleted_text_is_found_in_a_table_and_in_a_file(
    whole: Company, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    superuser.execute(
        "INSERT INTO dead_letter (tenant_id, bank_id, document_id, attempts, error)"
        " VALUES (%s, %s, 'a', 1, 'of the violet door')",
        (whole.tenant, whole.bank.id),
    )
    (tmp_path / "worker.log").write_text("the indigo door")
    told = list(_traces(superuser, ["orange", "violet", "indigo"], tmp_path))
    assert told == [
        "table dead_letter holds violet, which was deleted",
        "file worker.log holds indigo, which was deleted",
    ]

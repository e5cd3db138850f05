"""A tenant's own login for psql: what it sees, what it edits, and that it is bound."""

import re
from collections.abc import Callable, Iterator

import psycopg
import pytest

from app.access.logins import Login, add_login, drop_login
from app.db import schema
from app.db.addresses import database_url, role_name
from app.errors import ConflictError, NotFoundError, UsageError
from app.settings import settings
from tests.conftest import Company, ask, work_off


@pytest.fixture
def other(new_company: Callable[[str], Company]) -> Company:
    other = new_company("northwind")
    other.store("plan", "secret plan")
    return other


@pytest.fixture
def login(company: Company, other: Company) -> Iterator[Login]:
    company.store("rules", "one\n\ntwo")
    company.store("pay", "for hr", access=["group:hr"])
    work_off()
    yield add_login(company.name)
    drop_login(company.name)


@pytest.fixture
def psql(login: Login) -> Iterator[psycopg.Connection]:
    with psycopg.connect(login.url, autocommit=True) as connection:
        yield connection


def rows(connection: psycopg.Connection, statement: str) -> list[tuple[object, ...]]:
    return connection.execute(statement).fetchall()


def test_it_sees_the_tenants_documents_chunks_and_status_whatever_their_lists(
    psql: psycopg.Connection,
) -> None:
    assert rows(psql, "SELECT id FROM document ORDER BY 1") == [("pay",), ("rules",)]
    assert rows(psql, "SELECT text FROM chunk ORDER BY 1") == [("for hr",), ("one",), ("two",)]
    assert rows(psql, "SELECT tenant, chunks, memories, pending FROM bank_status") == [
        ("harbor", 3, 3, 0)
    ]
    assert rows(psql, "SELECT id, status FROM document_status ORDER BY 1") == [
        ("pay", "ready"),
        ("rules", "ready"),
    ]
    assert rows(psql, "SELECT * FROM job") == []


def test_its_edits_are_queued_and_encoded_as_anyones(
    psql: psycopg.Connection, company: Company
) -> None:
    psql.execute("UPDATE document SET text = 'three' WHERE id = 'rules'")
    psql.execute(
        "INSERT INTO document (tenant_id, bank_id, id, source, title, text)"
        " SELECT tenant_id, id, 'new', 'n.md', 'New', 'four' FROM bank"
    )
    with psql.cursor().copy("COPY document_load (tenant, bank, id, text) FROM STDIN") as copy:
        copy.write_row(("harbor", "handbook", "loaded", "five"))
    assert rows(psql, "SELECT document_id, state, priority FROM job ORDER BY 1") == [
        ("loaded", "pending", 0),
        ("new", "pending", 0),
        ("rules", "pending", 1),
    ]
    work_off()
    assert rows(psql, "SELECT count(*) FROM document_status WHERE status = 'ready'") == [(4,)]
    assert rows(psql, "SELECT text FROM chunk WHERE document_id = 'rules'") == [("three",)]
    psql.execute("DELETE FROM document WHERE id <> 'pay'")
    assert rows(psql, "SELECT text FROM chunk") == [("for hr",)]


def test_it_keeps_lists_and_groups(psql: psycopg.Connection, company: Company) -> None:
    psql.execute("INSERT INTO principal (tenant_id, name) SELECT id, 'ann' FROM tenant")
    psql.execute("INSERT INTO principal_group (tenant_id, name) SELECT id, 'hr' FROM tenant")
    psql.execute(
        "INSERT INTO group_member SELECT p.tenant_id, g.id, p.id"
        " FROM principal p, principal_group g"
    )
    ann = company.reader("ann")
    seen = "SELECT id FROM document ORDER BY 1"
    assert ask(ann, seen) == [("pay",), ("rules",)]
    psql.execute("UPDATE document SET access = '{}' WHERE id = 'rules'")
    psql.execute("DELETE FROM group_member")
    assert ask(ann, seen) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE document SET revision = 2147483647",
        "UPDATE document SET split_revision = 0",
        "UPDATE document SET bank_id = 1",
        "UPDATE document SET tenant_id = 1",
        "UPDATE chunk SET text = 'other'",
        "INSERT INTO outbox (tenant_id, bank_id, document_id, profile_id, revision)"
        " SELECT tenant_id, bank_id, id, 'any', 1 FROM document",
        "UPDATE outbox SET attempts = 2000000000",
        "DELETE FROM outbox",
        "SELECT payload FROM memory_blob",
        "SELECT * FROM tenant_role",
        "SELECT * FROM context_key",
        "SELECT job_retry(1)",
        "SELECT find_tenant('northwind')",
        "UPDATE tenant SET paused = true",
        "UPDATE bank SET profile_id = 'x'",
        "TRUNCATE document CASCADE",
        "SET ROLE membank_admin",
        "CREATE TEMPORARY TABLE t (x int)",
        "CREATE TABLE t (x int)",
    ],
)
def test_what_would_hinder_others_or_the_work_is_refused(
    psql: psycopg.Connection, statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        psql.execute(statement)


@pytest.mark.parametrize("bank", ["northwind", "no such tenant"])
def test_loading_into_another_tenant_is_refused_as_into_none(
    psql: psycopg.Connection, bank: str
) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="there is no such tenant"):
        psql.execute(
            "INSERT INTO document_load (tenant, bank, id, text) VALUES (%s, 'handbook', 'x', 'y')",
            [bank],
        )


def test_the_group_may_be_taken_on_and_binds_as_well(
    psql: psycopg.Connection, other: Company
) -> None:
    psql.execute("SET ROLE membank_tenant")
    psql.execute("SELECT set_config('membank.tenant_id', %s, false)", [str(other.tenant)])
    assert rows(psql, "SELECT id FROM document ORDER BY 1") == [("pay",), ("rules",)]


def test_its_name_tells_nothing_and_its_password_is_in_no_log(
    login: Login, company: Company, superuser: psycopg.Connection
) -> None:
    assert re.fullmatch("membank_tenant_[0-9a-f]{8}", login.role)
    assert login.password not in repr(login)
    (stored,) = superuser.execute(
        "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [login.role]
    ).fetchone() or ("",)
    assert stored.startswith("SCRAM-SHA-256$")
    schema.require_safe()


def test_a_tenant_has_one_and_it_can_be_dropped_and_made_again(
    company: Company, superuser: psycopg.Connection
) -> None:
    with pytest.raises(NotFoundError, match="has no role"):
        drop_login(company.name)
    first = add_login(company.name)
    with pytest.raises(ConflictError, match="--drop"):
        add_login(company.name)
    with psycopg.connect(first.url, autocommit=True) as open_session:
        open_session.execute("SELECT lo_create(0)")
        assert drop_login(company.name) == first.role
        with pytest.raises(psycopg.OperationalError):
            open_session.execute("SELECT 1")
    second = add_login(company.name)
    assert second.role != first.role
    assert drop_login(company.name) == second.role
    left = superuser.execute(
        "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [[first.role, second.role]]
    )
    assert left.fetchone() == (0,)


def test_a_login_of_no_tenant_sees_nothing(login: Login, superuser: psycopg.Connection) -> None:
    with psycopg.connect(login.url, autocommit=True) as connection:
        superuser.execute("UPDATE tenant_role SET role = 'someone else'")
        assert rows(connection, "SELECT * FROM document") == []
        assert rows(connection, "SELECT * FROM tenant") == []
        superuser.execute("UPDATE tenant_role SET role = %s", [login.role])


def test_a_login_above_the_policies_is_named(login: Login, superuser: psycopg.Connection) -> None:
    superuser.execute(f"ALTER ROLE {login.role} BYPASSRLS")
    bad = {check.name: check.detail for check in schema.checks() if not check.good}
    assert bad == {"role membank_tenant": f"{login.role} bypasses RLS"}
    superuser.execute(f"ALTER ROLE {login.role} NOBYPASSRLS")


def test_the_programs_own_login_makes_no_roles(
    company: Company, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_url("app").render_as_string(hide_password=False)
    monkeypatch.setenv("MEMBANK_DATABASE_URL", url)
    settings.cache_clear()
    with pytest.raises(UsageError, match=f"{role_name('app')}, which cannot make roles"):
        add_login(company.name)

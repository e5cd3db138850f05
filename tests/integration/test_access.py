"""Who sees and changes what, under the real roles, over everything that the catalogue lists."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.access.quota import Quota
from app.bank import roles
from app.db import schema
from app.db.addresses import DatabaseRole
from app.db.isolation import pgvector_fault, postgres_fault
from app.db.session import Asker, transaction
from app.errors import MembankError
from app.queue import outbox
from tests import edges
from tests.conftest import PROFILE, Company, administer, ask, begin_request, change, work_off
from tests.edges import find_principal, grant, issue, set_quota

ROOT = Path(__file__).parents[2]

# What a principal sees only by a document that it may read, or because it is its own.
OF_READERS = (
    "document", "chunk", "memory_key", "memory_blob", "outbox", "dead_letter", "file", "bank_file",
)  # fmt: skip

# What the outbox may show of other tenants to a worker, which takes work of all of them in turn.
OUTBOX_COLUMNS = {
    "tenant_id", "id", "bank_id", "document_id", "chunk_id", "profile_id", "revision",
    "attempts", "not_before", "lease_token", "lease_until", "last_error", "created_at",
    "priority", "file_id",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two tenants with the same principals and the same documents, and rows in every table."""

    ours: Company
    theirs: Company

    @property
    def alice(self) -> Asker:
        """A principal of `ours` in no group."""
        return find_principal(self.ours.name, "alice")

    @property
    def hana(self) -> Asker:
        """A principal of `ours` in the group hr."""
        return find_principal(self.ours.name, "hana")


@pytest.fixture
def pair(new_company: Callable[[str], Company]) -> Pair:
    pair = Pair(new_company("harbor"), new_company("northwind"))
    companies = (pair.ours, pair.theirs)
    for company in companies:
        company.store("broken", "cannot be encoded")
    for work in outbox.claim(PROFILE, 100, 60.0):
        outbox.fail(work, "no way", max_attempts=1)
    for company in companies:
        company.reader("alice")
        company.reader("hana", "hr")
        issue(company.name, "alice")
        hana = company.reader("hana")
        file = edges.upload(hana, "notes.md", "assistants", b"notes")
        grant(company.bank, "principal:hana", roles.BankRole.WRITER)
        edges.attach(hana, company.bank.id, [(file.id, {})])
        company.store("handbook", "Welcome.\n\nHours are nine to five.")
        company.store("salaries", "Bands.\n\nRaises come in May.", ["group:hr"])
    work_off()
    for company in companies:
        company.store("late", "still waits in the outbox")
        administer(
            "INSERT INTO object_gone (tenant_id, location) VALUES (:tenant, 'object')",
            tenant=company.tenant,
        )
        administer(
            "INSERT INTO tenant_role (tenant_id, role) VALUES (:tenant, :role)",
            tenant=company.tenant,
            role=f"login of {company.name}",
        )
        administer(
            "INSERT INTO tenant_key (tenant_id, version, id, destroyed_at)"
            " VALUES (:t, 1, gen_random_uuid(), now())",
            t=company.tenant,
        )
        set_quota(company.tenant, Quota(documents=1000))
        begin_request(company.reader("alice"))
    return pair


def relations(superuser: psycopg.Connection, kinds: str) -> list[str]:
    found = superuser.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind = ANY(%s) AND relname <> 'alembic_version' ORDER BY 1",
        [list(kinds)],
    )
    return [row[0] for row in found]


def tables(superuser: psycopg.Connection) -> list[str]:
    """Those that hold tenants' rows."""
    return [table for table in relations(superuser, "rp") if table != "context_key"]


def owner_column(table: str) -> str:
    return "id" if table == "tenant" else "tenant_id"


def visible(asker: Asker, relation: str, where: str = "true") -> int:
    """How many rows `asker` sees there; 0 where it may not look at all."""
    try:
        return int(ask(asker, f"SELECT count(*) FROM {relation} WHERE {where}")[0][0])
    except ProgrammingError as error:
        return 0 if is_denied(error) else -1


def touched(asker: Asker, statement: str) -> int:
    """How many rows the statement changes; 0 where it may not change any."""
    try:
        return change(asker, statement)
    except ProgrammingError as error:
        return 0 if is_denied(error) else -1


def is_denied(error: ProgrammingError) -> bool:
    return getattr(error.orig, "sqlstate", None) == "42501"


def rows_of(superuser: psycopg.Connection, tenant: int) -> dict[str, list[str]]:
    """Every row of a tenant, table by table."""
    found = {}
    for table in tables(superuser):
        rows = superuser.execute(
            f"SELECT to_jsonb(t)::text FROM {table} t WHERE {owner_column(table)} = %s ORDER BY 1",
            [tenant],
        )
        found[table] = [row[0] for row in rows]
    return found


class TestTenants:
    def test_the_pair_has_rows_of_both_tenants_in_every_table(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        for company in (pair.ours, pair.theirs):
            assert [t for t, rows in rows_of(superuser, company.tenant).items() if not rows] == []

    @pytest.mark.parametrize("principal", [None, 1])
    def test_app_without_a_tenant_sees_no_row_anywhere(
        self, pair: Pair, superuser: psycopg.Connection, principal: int | None
    ) -> None:
        nobody = Asker("app", None, principal)
        for relation in relations(superuser, "rpvmf"):
            assert visible(nobody, relation) == 0, relation

    def test_worker_without_a_tenant_sees_only_the_outbox(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        seen = [r for r in relations(superuser, "rpvmf") if visible(Asker("worker"), r)]
        assert seen == ["outbox"]

    def test_owner_sees_no_row_but_the_names_of_tenants_and_of_objects_and_the_keys(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        seen = [r for r in relations(superuser, "rpvmf") if visible(Asker("owner"), r)]
        assert seen == ["context_key", "object_gone", "tenant"]

    @pytest.mark.parametrize("role", ["app", "worker", "admin"])
    def test_nobody_but_the_owner_may_look_at_the_keys(
        self, superuser: psycopg.Connection, role: DatabaseRole
    ) -> None:
        with pytest.raises(ProgrammingError) as caught:
            ask(Asker(role), "SELECT * FROM context_key")
        assert is_denied(caught.value)

    def test_app_sees_no_row_of_another_tenant(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        for relation in relations(superuser, "rpvmf"):
            # One names tenants instead and never holds a row, the other is of no tenant.
            others = "true"
            if relation not in ("document_load", "context_key"):
                others = f"{owner_column(relation)} <> {pair.ours.tenant}"
            assert visible(pair.hana, relation, others) == 0, relation
        seen = {t for t in tables(superuser) if visible(pair.hana, t)}
        unseen = {"tenant_role", "api_key", "audit_event", "object_gone"}
        assert seen == set(tables(superuser)) - unseen

    def test_a_principal_of_another_tenant_reads_nothing_here(self, pair: Pair) -> None:
        theirs = find_principal(pair.theirs.name, "hana").principal
        stranger = Asker("app", pair.ours.tenant, theirs)
        for table in OF_READERS:
            assert visible(stranger, table) == 0, table

    def test_app_without_a_principal_reads_not_even_what_is_for_everyone(self, pair: Pair) -> None:
        for table in OF_READERS:
            assert visible(Asker("app", pair.ours.tenant), table) == 0, table

    def test_app_can_change_nothing(self, pair: Pair, superuser: psycopg.Connection) -> None:
        for table in tables(superuser):
            column = "name" if table == "tenant" else "tenant_id"
            for statement in (
                # The audit log is there to be added to, see test_audit.py.
                *([] if table == "audit_event" else [f"INSERT INTO {table} DEFAULT VALUES"]),
                f"UPDATE {table} SET {column} = {column}",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
            ):
                with pytest.raises(ProgrammingError) as caught:
                    change(pair.hana, statement)
                assert is_denied(caught.value), statement

    def test_worker_can_neither_see_nor_change_rows_of_another_tenant(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        worker, theirs = Asker("worker", pair.ours.tenant), pair.theirs.tenant
        before = rows_of(superuser, theirs)
        for table in tables(superuser):
            if table == "outbox":
                continue
            owner = owner_column(table)
            column = "name" if table == "tenant" else owner
            assert visible(worker, table, f"{owner} = {theirs}") == 0, table
            for statement in (
                f"UPDATE {table} SET {column} = {column} WHERE {owner} = {theirs}",
                f"DELETE FROM {table} WHERE {owner} = {theirs}",
            ):
                assert touched(worker, statement) == 0, statement
        assert rows_of(superuser, theirs) == before

    def test_worker_can_neither_give_rows_to_another_tenant_nor_insert_them_there(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        worker, theirs = Asker("worker", pair.ours.tenant), pair.theirs.tenant
        before = rows_of(superuser, theirs)
        for table in tables(superuser):
            if table in ("outbox", "tenant"):
                continue
            with pytest.raises(ProgrammingError) as caught:
                change(worker, f"UPDATE {table} SET tenant_id = {theirs}")
            assert is_denied(caught.value), table
            columns = insertable(superuser, table)
            with pytest.raises(ProgrammingError) as caught:
                change(
                    worker,
                    f"INSERT INTO {table} ({columns}) SELECT {columns}"
                    f" FROM jsonb_populate_record(NULL::{table}, cast(:row AS jsonb))",
                    row=before[table][0],
                )
            assert is_denied(caught.value), table
        with pytest.raises(ProgrammingError):
            change(worker, "INSERT INTO tenant (name) VALUES ('third')")
        assert rows_of(superuser, theirs) == before

    def test_the_outbox_shows_workers_ids_and_no_text(
        self, pair: Pair, superuser: psycopg.Connection
    ) -> None:
        rows = rows_of(superuser, pair.theirs.tenant)["outbox"]
        assert set(json.loads(rows[0])) == OUTBOX_COLUMNS
        assert "still waits" not in "".join(rows)


def insertable(superuser: psycopg.Connection, table: str) -> str:
    """Columns of a table that an INSERT may give."""
    found = superuser.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        " AND NOT attisdropped AND attidentity = '' AND attgenerated = '' ORDER BY attnum",
        [table],
    )
    return ", ".join(row[0] for row in found)


class TestAccessList:
    """A document for one group: its row, its chunks, its keys and its blobs go together."""

    @staticmethod
    def seen(asker: Asker, document: str) -> dict[str, int]:
        return {
            "document": visible(asker, "document", f"id = '{document}'"),
            "chunk": visible(asker, "chunk", f"document_id = '{document}'"),
            "memory_key": visible(asker, "memory_key", f"document_id = '{document}'"),
            "memory_blob": visible(
                asker,
                f"memory_blob JOIN (SELECT id FROM chunk WHERE document_id = '{document}') c"
                " ON c.id = chunk_id",
            ),
        }

    NOTHING = dict.fromkeys(("document", "chunk", "memory_key", "memory_blob"), 0)
    WHOLE = NOTHING | {"document": 1, "chunk": 2, "memory_key": 2, "memory_blob": 2}

    def test_who_is_not_in_the_group_sees_nothing_of_it(self, pair: Pair) -> None:
        assert self.seen(pair.alice, "salaries") == self.NOTHING
        assert self.seen(pair.hana, "salaries") == self.WHOLE

    def test_a_blob_is_not_seen_without_its_document_even_by_its_number(self, pair: Pair) -> None:
        secret = ask(pair.hana, "SELECT chunk_id FROM memory_key WHERE document_id = 'salaries'")
        for (chunk,) in secret:
            assert visible(pair.hana, "memory_blob", f"chunk_id = {chunk}") == 1
            assert visible(pair.alice, "memory_blob", f"chunk_id = {chunk}") == 0
            assert visible(pair.alice, "memory_key", f"chunk_id = {chunk}") == 0
        assert visible(pair.alice, "memory_blob") == 2

    def test_leaving_the_group_counts_from_the_next_transaction(self, pair: Pair) -> None:
        hana = pair.hana
        assert self.seen(hana, "salaries") == self.WHOLE
        administer(
            "DELETE FROM group_member WHERE tenant_id = :tenant AND principal_id = :principal",
            tenant=hana.tenant,
            principal=hana.principal,
        )
        assert self.seen(hana, "salaries") == self.NOTHING
        assert self.seen(hana, "handbook") == self.WHOLE

    def test_membership_in_another_tenants_group_of_that_name_opens_nothing(
        self, pair: Pair
    ) -> None:
        pair.theirs.reader("alice", "hr")
        assert self.seen(pair.alice, "salaries") == self.NOTHING

    def test_an_empty_list_means_nobody(self, pair: Pair) -> None:
        pair.ours.store("handbook", "Welcome.\n\nHours are nine to five.", access=[])
        for asker in (pair.alice, pair.hana):
            assert self.seen(asker, "handbook") == self.NOTHING

    def test_an_entry_names_one_principal(self, pair: Pair) -> None:
        administer("UPDATE document SET access = '{principal:alice}' WHERE id = 'salaries'")
        assert self.seen(pair.alice, "salaries") == self.WHOLE
        assert self.seen(pair.hana, "salaries") == self.NOTHING

    @pytest.mark.parametrize("entry", ["alice", "group:alice", "Everyone", "principal:", "", "*"])
    def test_an_entry_that_is_almost_right_opens_nothing(self, pair: Pair, entry: str) -> None:
        administer("UPDATE document SET access = ARRAY[:entry] WHERE id = 'salaries'", entry=entry)
        assert self.seen(pair.alice, "salaries") == self.NOTHING

    def test_a_renamed_document_stays_as_secret_as_it_was(self, pair: Pair) -> None:
        administer("UPDATE document SET id = 'pay' WHERE id = 'salaries'")
        pair.ours.store("salaries", "Ask hr.\n\nThey know.", ["everyone"])
        work_off()
        assert self.seen(pair.hana, "pay") == self.WHOLE
        assert self.seen(pair.alice, "pay") == self.NOTHING
        payloads = ask(pair.alice, "SELECT convert_from(payload, 'UTF8') FROM memory_blob")
        assert not {"kv of Bands.", "kv of Raises come in May."} & {p for (p,) in payloads}

    def test_a_forgotten_where_returns_only_what_may_be_read(self, pair: Pair) -> None:
        with transaction(pair.alice) as connection:
            documents = connection.execute(text("SELECT tenant_id, id FROM document")).all()
            texts = connection.execute(text("SELECT text FROM chunk")).scalars().all()
        ours = pair.ours.tenant
        assert set(documents) == {(ours, "broken"), (ours, "handbook"), (ours, "late")}
        assert "Bands." not in texts
        assert len(texts) == 4


class TestContext:
    @pytest.fixture
    def one_connection(self, pair: Pair) -> Callable[[Asker], tuple[int, int]]:
        """Server process and number of visible documents, seen by an asker."""

        def look(asker: Asker) -> tuple[int, int]:
            rows = ask(asker, "SELECT pg_backend_pid(), (SELECT count(*) FROM document)")
            return rows[0][0], rows[0][1]

        return look

    def test_who_was_asking_is_forgotten_on_the_same_connection(
        self, pair: Pair, one_connection: Callable[[Asker], tuple[int, int]]
    ) -> None:
        process, seen = one_connection(pair.hana)
        assert seen == 4
        assert one_connection(Asker("app")) == (process, 0)
        assert one_connection(pair.alice) == (process, 3)
        assert one_connection(Asker("app", pair.ours.tenant)) == (process, 0)

    def test_who_was_asking_is_forgotten_after_an_error(
        self, pair: Pair, one_connection: Callable[[Asker], tuple[int, int]]
    ) -> None:
        process, _ = one_connection(pair.hana)
        with pytest.raises(ProgrammingError):
            ask(pair.hana, "SELECT no_such_column FROM document")
        assert one_connection(Asker("app")) == (process, 0)

    def test_nothing_is_left_set_when_the_connection_is_used_without_the_session(
        self, pair: Pair
    ) -> None:
        with transaction(pair.hana) as connection:
            engine = connection.engine
        with engine.connect() as bare:
            assert bare.execute(text("SELECT current_tenant(), current_principal()")).one() == (
                None,
                None,
            )
            assert bare.execute(text("SELECT count(*) FROM document")).scalar() == 0


class TestChecks:
    @pytest.fixture
    def database(self, own_database: str) -> str:
        return own_database

    def bad(self) -> dict[str, str]:
        return {check.name: check.detail for check in schema.checks() if not check.good}

    def test_a_good_database_is_fit_to_serve(self, database: str) -> None:
        assert self.bad() == {}
        schema.require_safe()

    @pytest.mark.parametrize("how", ["DISABLE ROW LEVEL SECURITY", "NO FORCE ROW LEVEL SECURITY"])
    def test_a_table_without_forced_row_security_is_named(
        self, superuser: psycopg.Connection, how: str
    ) -> None:
        superuser.execute(f"ALTER TABLE chunk {how}")
        assert self.bad() == {"row-level security": "off on chunk"}
        with pytest.raises(MembankError, match="off on chunk"):
            schema.require_safe()

    @pytest.mark.parametrize("role", ["membank_app", "membank_worker"])
    @pytest.mark.parametrize(
        ("power", "told"), [("SUPERUSER", "is superuser"), ("BYPASSRLS", "bypasses RLS")]
    )
    def test_a_role_above_the_policies_is_named(
        self, superuser: psycopg.Connection, role: str, power: str, told: str
    ) -> None:
        superuser.execute(f"ALTER ROLE {role} {power}")
        try:
            assert self.bad() == {f"role {role}": told}
            with pytest.raises(MembankError, match=f"{role}: {told}"):
                schema.require_safe()
        finally:
            superuser.execute(f"ALTER ROLE {role} NO{power}")
        assert self.bad() == {}

    @pytest.mark.parametrize("role", ["membank_app", "membank_worker"])
    @pytest.mark.parametrize(
        ("power", "told"),
        [
            ("membank_admin", "is member of membank_admin"),
            ("membank_owner", "is member of membank_owner, which owns tables"),
            ("postgres", "is member of postgres, which is superuser"),
            ("pg_read_all_data", "is member of pg_read_all_data, which sees more than rows"),
        ],
    )
    def test_a_member_of_a_role_above_the_policies_is_named(
        self, superuser: psycopg.Connection, role: str, power: str, told: str
    ) -> None:
        superuser.execute(f"GRANT {power} TO {role}")
        try:
            found = self.bad()
            assert list(found) == [f"role {role}"]
            assert told in found[f"role {role}"]
        finally:
            superuser.execute(f"REVOKE {power} FROM {role}")

    @pytest.mark.parametrize(
        ("statement", "told"),
        [
            ("GRANT TEMPORARY ON DATABASE {} TO PUBLIC", "temporary tables"),
            ("GRANT CREATE ON SCHEMA public TO PUBLIC", "create in the schema public"),
        ],
    )
    def test_a_place_of_its_own_for_a_role_is_named(
        self, superuser: psycopg.Connection, statement: str, told: str
    ) -> None:
        superuser.execute(statement.format(superuser.info.dbname))
        found = self.bad()
        assert set(found) == {"role membank_app", "role membank_worker", "role membank_tenant"}
        assert all(told in detail for detail in found.values())

    @pytest.mark.parametrize(
        ("statement", "check", "told"),
        [
            ("CREATE TABLE leak (x int)", "row-level security", "off on leak"),
            (
                "CREATE TABLE leak (x int);"
                "ALTER TABLE leak ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
                "row-level security",
                "no policy on leak",
            ),
            (
                "DROP POLICY tenant_floor ON document",
                "row-level security",
                "no floor for a role on document",
            ),
            (
                "DROP POLICY tenant_role_floor ON outbox",
                "row-level security",
                "no floor for a role on outbox",
            ),
            ("CREATE VIEW leak AS SELECT 1", "views and functions", "leak is a view"),
            (
                "CREATE MATERIALIZED VIEW leak AS SELECT 1",
                "views and functions",
                "leak keeps rows that no policy guards",
            ),
            (
                "CREATE FUNCTION leak() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "views and functions",
                "leak looks names up where its caller says",
            ),
            (
                "ALTER FUNCTION find_tenant SET search_path = pg_catalog, public",
                "views and functions",
                "find_tenant looks names up where its caller says",
            ),
            (
                "GRANT EXECUTE ON FUNCTION signed_context() TO PUBLIC",
                "views and functions",
                "signed_context runs with its owner's rights for everyone",
            ),
            ("GRANT SELECT ON chunk TO PUBLIC", "views and functions", "chunk is open to PUBLIC"),
            ("DELETE FROM context_key", "context key", "membank context rotate"),
            (
                "UPDATE context_key SET valid_until = now() - interval '1 second'",
                "context key",
                "does not know the key",
            ),
        ],
    )
    def test_what_opens_the_database_is_named(
        self, superuser: psycopg.Connection, statement: str, check: str, told: str
    ) -> None:
        superuser.execute(statement)
        found = self.bad()
        assert list(found) == [check]
        assert told in found[check]
        with pytest.raises(MembankError, match=check):
            schema.require_safe("worker")

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (150_018, "15 is too old"),
            (160_013, "16.14 or newer"),
            (160_014, None),
            (170_009, "17.10 or newer"),
            (180_003, "18.4 or newer"),
            (180_004, None),
            (190_000, None),
        ],
    )
    def test_a_server_with_known_holes_is_named(self, number: int, told: str | None) -> None:
        fault = postgres_fault(number)
        assert fault is None if told is None else told in str(fault)

    @pytest.mark.parametrize(
        ("version", "good"),
        [(None, False), ("0.8.3", False), ("0.8.4", True), ("0.8.10", True), ("0.9", True)],
    )
    def test_a_pgvector_with_known_faults_is_named(self, version: str | None, good: bool) -> None:
        assert (pgvector_fault(version) is None) is good

    def test_a_role_that_owns_the_tables_is_named(self, superuser: psycopg.Connection) -> None:
        superuser.execute("ALTER TABLE document OWNER TO membank_app")
        assert self.bad() == {"role membank_app": "owns tables"}

    @pytest.mark.parametrize(
        ("statement", "told"),
        [
            ("UPDATE alembic_version SET version_num = '0000'", "0000, need"),
            ("DELETE FROM alembic_version", "none, need"),
            ("DROP TABLE alembic_version", "none, need"),
        ],
    )
    def test_a_migration_that_is_behind_is_named(
        self, superuser: psycopg.Connection, statement: str, told: str
    ) -> None:
        superuser.execute(statement)
        assert list(self.bad()) == ["migration"]
        with pytest.raises(MembankError, match=f"migration: {told}.*membank up"):
            schema.require_safe()


class TestSource:
    """The database is reached through app/db/session.py, which says who is asking."""

    OPENING = frozenset(
        {
            *("create_engine", "create_async_engine", "create_pool", "engine_from_config"),
            *("Session", "AsyncSession", "sessionmaker", "async_sessionmaker", "scoped_session"),
            *("AsyncConnection", "ConnectionPool", "AsyncConnectionPool"),
        }
    )
    DRIVERS = ("psycopg", "psycopg2", "psycopg_pool", "asyncpg", "pg8000")
    # What a driver has besides: words for SQL and for errors.
    HARMLESS = frozenset({"sql", "Error", "errors"})
    ALLOWED = frozenset(
        {
            "app/db/session.py",
            "app/local/postgres.py",  # before there is a database
            "migrations/env.py",  # outside of any tenant
            *(
                "benchmarks/search_peers.py",
                "benchmarks/search_rows.py",
            ),  # what people write by hand
        }
    )

    def opens(self, source: str) -> bool:
        """Whether a module calls, imports or names what opens a connection to Postgres."""
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                driver = (node.module or "").split(".")[0] in self.DRIVERS
                if names & self.OPENING or (driver and names - self.HARMLESS):
                    return True
            if isinstance(node, ast.Import):
                drivers = {alias.name.split(".")[0] for alias in node.names} & set(self.DRIVERS)
                if drivers - {"psycopg"} or any(a.asname and drivers for a in node.names):
                    return True
            if isinstance(node, ast.Attribute) and node.attr in self.OPENING:
                return True
            if isinstance(node, ast.Call) and re.match(
                r"psycopg\.(connect|Connection\.connect|AsyncConnection)", ast.unparse(node.func)
            ):
                return True
        return False

    def test_only_the_session_opens_connections(self) -> None:
        opening = {
            path.relative_to(ROOT).as_posix()
            for folder in ("app", "workers", "migrations", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")
            if self.opens(path.read_text(encoding="utf-8"))
        }
        assert opening == self.ALLOWED

    def test_nobody_takes_an_engine_from_a_connection(self) -> None:
        """One that a transaction has could begin another, without saying who asks."""
        taking = {
            path.relative_to(ROOT).as_posix()
            for folder in ("app", "workers", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")
            if re.search(r"\.engine\.(connect|begin|raw_connection)", path.read_text("utf-8"))
        }
        assert taking == set()

    @pytest.mark.parametrize(
        "source",
        [
            "import sqlalchemy\nsqlalchemy.create_engine('x')",
            "from sqlalchemy import create_engine as e, text\ne('x')",
            "from sqlalchemy.orm import Session",
            "from sqlalchemy.orm import sessionmaker",
            "from sqlalchemy.ext.asyncio import create_async_engine",
            "import psycopg\nwith psycopg.connect('x') as c: pass",
            "import psycopg as p\np.connect('x')",
            "from psycopg import connect",
            "import psycopg\npsycopg.AsyncConnection.connect('x')",
            "import psycopg\npsycopg.Connection.connect('x')",
            "import psycopg_pool",
            "import asyncpg",
        ],
    )
    def test_the_scan_sees_what_opens_a_connection(self, source: str) -> None:
        assert self.opens(source)

    @pytest.mark.parametrize(
        "source", ["from psycopg import sql", "import psycopg\nx: psycopg.Connection[int]"]
    )
    def test_the_scan_lets_words_pass(self, source: str) -> None:
        assert not self.opens(source)

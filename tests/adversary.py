"""Who tries to reach another tenant's rows, with what, and what of it succeeds.

Everything is generated from the catalogue: what is new there is attacked without a word here.
"Theirs" is known by sight: their numbers are from THEIRS on, their names and texts hold MARK.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from app.access.logins import add_login
from app.bank import roles
from app.db.addresses import DatabaseRole, database_url
from app.db.session import Asker
from app.db.signing import Key, context_key
from app.queue import outbox
from tests import edges
from tests.conftest import PROFILE, Company, administer, work_off
from tests.edges import grant, issue, pause_tenant

MARK = "zzforeign"
THEIRS, NOBODYS = 770_000_000_000, 880_000_000_000
# The worker takes work of all tenants in turn: ids, names of documents, and error messages.
SHARED = {("membank_worker", "outbox")}
# Answered for one name, or as ids without names, by design.
TOLD = {
    "find_tenant": "the number of a tenant whose name the caller knows",
    "next_tenant": "numbers of tenants, to the worker",
    "paused_tenants": "numbers of tenants, to the worker",
    "gone_tenants": "numbers of tenants, to the worker",
    "changing_banks": "numbers of tenants and banks, to the worker",
}
_SEEN = re.compile(rf"{MARK}|\b77\d{{10}}\b")


@dataclass(frozen=True)
class Relation:
    """A table, a view or whatever else holds rows."""

    name: str
    kind: str
    columns: dict[str, str]

    @property
    def owner(self) -> str | None:
        """The column that says whose a row is."""
        if self.name == "tenant":
            return "id"
        return "tenant_id" if "tenant_id" in self.columns else None


@dataclass(frozen=True)
class Outcome:
    """What came back: rows as text, or an error's code and text; and how many rows were touched."""

    code: str
    said: str
    count: int

    def without(self, *values: object) -> "Outcome":
        """The same, with values that the attacker gave blotted out."""
        said = self.said
        for value in sorted({str(v) for v in values if v is not None}, key=len, reverse=True):
            if len(value) > 1:
                said = said.replace(value, "?")
        return Outcome(self.code, said, self.count)


@dataclass
class World:
    """Two tenants with rows in every table, and a superuser who sees all of them."""

    superuser: psycopg.Connection
    ours: Company
    theirs: Company
    reader: Asker
    their_reader: Asker
    login: str

    def relations(self, kinds: str = "rpvmf") -> list[Relation]:
        rows = self.superuser.execute(
            "SELECT c.relname, c.relkind::text, (SELECT jsonb_object_agg(attname,"
            " format_type(atttypid, atttypmod)) FROM pg_attribute a WHERE a.attrelid = c.oid"
            " AND attnum > 0 AND NOT attisdropped) FROM pg_class c"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = ANY(%s) ORDER BY 1",
            [list(kinds)],
        )
        return [Relation(*row) for row in rows]

    def tables(self) -> list[Relation]:
        return [r for r in self.relations("rp") if r.owner]

    def rows(self, table: Relation, tenant: int) -> list[dict[str, Any]]:
        """A tenant's rows as they are, without generated columns' kin: JSON objects."""
        found = self.superuser.execute(
            sql.SQL("SELECT to_jsonb(t) FROM {} t WHERE {} = %s ORDER BY to_jsonb(t)::text").format(
                sql.Identifier(table.name), sql.Identifier(table.owner or "")
            ),
            [tenant],
        )
        return [row[0] for row in found]

    def count(self, relation: Relation) -> int:
        """Rows of ours, those of no tenant included."""
        where = f"WHERE {relation.owner} = {self.ours.tenant}" if relation.owner else ""
        found = self.superuser.execute(f"SELECT count(*) FROM {relation.name} {where}").fetchone()
        return int(found[0]) if found else 0

    def theirs_now(self) -> dict[str, list[dict[str, Any]]]:
        return {t.name: self.rows(t, self.theirs.tenant) for t in self.tables()}


def build(superuser: psycopg.Connection, new_company: Callable[[str], Company]) -> World:
    """Ours first, then theirs with numbers from THEIRS on in every table."""
    ours = _filled(new_company("harbor"), "plain")
    reader = ours.reader("hana", "hr")
    pause_tenant(ours.name, True)  # or their worker would do our work
    for (name,) in superuser.execute(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"
    ).fetchall():
        superuser.execute("SELECT setval(%s, %s)", [name, THEIRS])
    theirs = _filled(new_company(MARK), MARK)
    pause_tenant(ours.name, False)
    login = add_login(ours.name)
    add_login(theirs.name)
    world = World(
        superuser,
        ours,
        theirs,
        reader,
        theirs.reader(f"{MARK}-hana", f"{MARK}-hr"),
        login.url,
    )
    for table in world.tables():
        for company in (ours, theirs):
            if not world.rows(table, company.tenant):
                _fill(world, table, company)
    return world


def _filled(company: Company, word: str) -> Company:
    company.store(f"{word}-broken", f"{word} cannot be encoded")
    for work in outbox.claim(PROFILE, 100, 60.0):
        outbox.fail(work, f"{word} failed", max_attempts=1)
    company.reader(f"{word}-alice")
    issue(company.name, f"{word}-alice", name=f"{word} key")
    alice = company.reader(f"{word}-alice")
    file = edges.upload(alice, f"{word}.md", "assistants", f"{word} of a file".encode())
    grant(company.bank, f"principal:{word}-alice", roles.BankRole.WRITER)
    edges.attach(alice, company.bank.id, [(file.id, {"of": word})], f"{word}-batch")
    company.store(f"{word}-handbook", f"Welcome {word}.\n\nHours {word}.")
    company.store(f"{word}-pay", f"Bands {word}.\n\nRaises {word}.", ["everyone"])
    work_off()
    administer(
        "INSERT INTO object_gone (tenant_id, location) VALUES (:tenant, :location)",
        tenant=company.tenant,
        location=f"{company.tenant}/{word}/object",
    )
    company.store(f"{word}-late", f"{word} still waits in the outbox")
    return company


def _fill(world: World, table: Relation, company: Company) -> None:
    """One row in a table that nothing above fills, by the types of its columns.

    Where a constraint wants more than that, fill the table in `_filled`.
    """
    word = MARK if company is world.theirs else "plain"
    made: dict[str, Any] = {}
    needed = world.superuser.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attnotnull"
        " AND NOT atthasdef AND attidentity = '' AND attgenerated = ''",
        [table.name],
    ).fetchall()
    for column, kind in needed:
        made[column] = _value(kind, word)
    for target, columns, keys in world.superuser.execute(
        "SELECT confrelid::regclass::text, array(SELECT attname::text FROM unnest(conkey) k JOIN"
        " pg_attribute ON attrelid = conrelid AND attnum = k), array(SELECT attname::text FROM"
        " unnest(confkey) k JOIN pg_attribute ON attrelid = confrelid AND attnum = k)"
        " FROM pg_constraint WHERE contype = 'f' AND conrelid = %s::regclass",
        [table.name],
    ).fetchall():
        whose = "id" if target == "tenant" else "tenant_id"
        found = world.superuser.execute(
            f"SELECT to_jsonb(t) FROM {target} t WHERE {whose} = %s LIMIT 1", [company.tenant]
        ).fetchone()
        assert found is not None, f"{table.name} points to {target}, which has no row"
        made |= {c: found[0][k] for c, k in zip(columns, keys, strict=True) if c in made}
    made["tenant_id"] = company.tenant
    names = ", ".join(made)
    world.superuser.execute(
        f"INSERT INTO {table.name} ({names}) SELECT {names}"
        f" FROM jsonb_populate_record(NULL::{table.name}, %s)",
        [Jsonb(made)],
    )


def _value(kind: str, word: str) -> Any:
    if kind.endswith("[]"):
        return []
    if kind.startswith("timestamp"):
        return "2026-01-01T00:00:00Z"
    known = {"jsonb": {}, "boolean": False, "bytea": "\\x" + "00" * 32, "date": "2026-01-01"}
    if kind in known:
        return known[kind]
    if kind == "uuid":
        return "00000000-0000-0000-0000-0000000" + ("77777" if word == MARK else "11111")
    number = kind.startswith(("bigint", "integer", "smallint", "double", "real", "numeric"))
    return 1 if number else f"{word}-made"


class Attacker:
    """A login, and what it says of itself before each attack. A role's attackers take turns on one
    connection, as the askers of a pool do."""

    def __init__(
        self,
        name: str,
        connection: psycopg.Connection,
        context: Callable[["Attacker"], dict[str, str]],
    ) -> None:
        self.connection = connection
        self.name = name
        self.settings = context(self)

    @property
    def role(self) -> str:
        return str(self.connection.info.user)

    @property
    def process(self) -> int:
        return self.connection.info.backend_pid

    def try_(self, statement: str, values: Any = None, undo: bool = True) -> Outcome:
        """Run a statement in a transaction that is rolled back, or kept."""
        with self.connection.transaction(force_rollback=undo):
            for name, value in self.settings.items():
                self.connection.execute("SELECT set_config(%s, %s, true)", [name, value])
            return _outcome(self.connection, statement, values)

    def may(self, table: str, privilege: str) -> list[str]:
        """Columns for which this login has a privilege."""
        rows = self.connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' AND attidentity = ''"
            " AND has_column_privilege(attrelid, attnum, %s) ORDER BY attnum",
            [f"public.{table}", privilege],
        )
        return [row[0] for row in rows]


def _outcome(connection: psycopg.Connection, statement: str, values: Any) -> Outcome:
    try:
        with connection.transaction(), connection.cursor() as cursor:
            if statement.startswith("COPY") and "TO STDOUT" in statement:
                with cursor.copy(statement) as copy:
                    return Outcome("", b"\n".join(bytes(part) for part in copy).decode(), 0)
            if statement.startswith("COPY") and "FROM STDIN" in statement:
                with cursor.copy(statement) as copy:
                    copy.write("")
                return Outcome("", "", 0)
            cursor.execute(statement, values)
            rows = cursor.fetchall() if cursor.description else []
            return Outcome("", "\n".join(str(row) for row in rows), cursor.rowcount)
    except psycopg.Error as error:
        told = error.diag
        parts = (told.message_primary, told.message_detail, told.message_hint, told.context)
        return Outcome(str(error.sqlstate), "\n".join(part for part in parts if part), 0)


def attackers(world: World, connections: Mapping[str, psycopg.Connection]) -> Iterator[Attacker]:
    """Each role with each thing it could say of itself. The first of each role says the truth."""
    ours, theirs, key = world.ours.tenant, world.theirs.tenant, context_key()
    stranger = Key.of("a key that this database was never told of")

    def said(text: str) -> Callable[[Attacker], dict[str, str]]:
        return lambda _: {"membank.context": text}

    def own(principal: int | None) -> Callable[[Attacker], dict[str, str]]:
        return lambda a: {"membank.context": key.sign(ours, principal, a.process)}

    def changed(a: Attacker) -> dict[str, str]:
        parts = key.sign(ours, world.reader.principal, a.process).split(" ")
        return {"membank.context": " ".join([parts[0], str(theirs), parts[2], parts[3]])}

    def replayed(a: Attacker) -> dict[str, str]:
        seen = key.sign(theirs, world.their_reader.principal, a.process + 1)
        return {"membank.context": seen}

    def unknown_key(a: Attacker) -> dict[str, str]:
        return {"membank.context": stranger.sign(theirs, None, a.process)}

    def borrowed_name(a: Attacker) -> dict[str, str]:
        signed = stranger.sign(theirs, None, a.process)
        return {"membank.context": key.id + signed[len(key.id) :]}

    def old_settings(a: Attacker) -> dict[str, str]:
        return {
            "membank.tenant_id": str(theirs),
            "membank.principal_id": str(world.their_reader.principal),
            "membank.context": "",
        }

    for role in ("app", "worker", "tenant"):
        connection = connections[role]
        principal = world.reader.principal if role == "app" else None
        for name, context in {
            "own": own(principal) if role != "tenant" else (lambda _: {}),
            "nothing": lambda _: {},
            "empty": said(""),
            "garbage": said("garbage"),
            "garbage that looks right": said(f"{key.id} {theirs} 0 " + "0" * 64),
            "nulls and signs": said(f"{key.id} {theirs} -1 ' OR true --"),
            "another tenant's number": changed,
            "another process's context": replayed,
            "an unknown key": unknown_key,
            "a known key's name": borrowed_name,
            "settings of old": old_settings,
        }.items():
            yield Attacker(f"{role}, {name}", connection, context)


def url_of(role: DatabaseRole) -> str:
    return database_url(role).set(drivername="postgresql").render_as_string(False)


def findings(world: World, attacker: Attacker) -> Iterator[str]:
    """What an attacker learns of theirs, or does to them; nothing if all is well."""
    for relation in world.relations():
        if (attacker.role, relation.name) in SHARED:
            continue
        yield from _reading(world, attacker, relation)
        yield from _changing(world, attacker, relation)
        if relation.kind in "rp" and relation.owner:
            yield from _oracles(world, attacker, relation)
    yield from _sequences(world, attacker)
    yield from _functions(world, attacker)
    yield from _escalation(attacker)


def _seen(outcome: Outcome, given: object = "") -> str | None:
    """Something of theirs in an outcome that the attacker did not say first."""
    for found in _SEEN.findall(outcome.said):
        if found not in str(given):
            return str(found)
    return None


def _reading(world: World, attacker: Attacker, relation: Relation) -> Iterator[str]:
    name = relation.name
    texts = ", ".join(f"t.{c}" for c, kind in relation.columns.items() if kind != "bytea")
    for statement in (
        f"SELECT to_jsonb(t) FROM {name} t",
        f"SELECT count(*), min(t::text), max(t::text) FROM {name} t GROUP BY t::text",
        f"COPY {name} TO STDOUT",
        f"COPY (SELECT * FROM {name}) TO STDOUT",
        f"SELECT to_jsonb(t) FROM {name} t WHERE t::text LIKE '%%'",
        # Errors quote values: those of rows that a policy hides must not come so far.
        f"SELECT cast(concat_ws(' ', {texts}) AS int) FROM {name} t",
        f"SELECT 1 FROM {name} t WHERE cast(concat_ws(' ', {texts}) AS int) = 1",
        f"SELECT to_jsonb(t) FROM {name} t FOR UPDATE",
        f"TABLE {name}",
    ):
        found = _seen(attacker.try_(statement))
        if found:
            yield f"{attacker.name}: {statement}: {found}"
    most = world.count(relation)
    for statement in (f"SELECT count(*) FROM {name}", f"SELECT count(*) FROM {name} WHERE true"):
        outcome = attacker.try_(statement)
        if not outcome.code and int(outcome.said.strip("(),")) > most:
            yield f"{attacker.name}: {statement}: {outcome.said}, {most} are ours"


def _changing(world: World, attacker: Attacker, relation: Relation) -> Iterator[str]:
    name = relation.name
    columns = attacker.may(name, "UPDATE") or list(relation.columns)[:1]
    theirs = f"WHERE {relation.owner} >= {THEIRS}" if relation.owner else ""
    for statement in (
        *(f"UPDATE {name} t SET {c} = {c} RETURNING to_jsonb(t)" for c in columns),
        f"DELETE FROM {name} t RETURNING to_jsonb(t)",
        # Without RETURNING no right to read is needed.
        *((f"UPDATE {name} SET {c} = {c} {theirs}" for c in columns) if theirs else ()),
        *([f"DELETE FROM {name} {theirs}"] if theirs else ()),
    ):
        outcome = attacker.try_(statement)
        if _seen(outcome):
            yield f"{attacker.name}: {statement}: {_seen(outcome)}"
        if statement.endswith(theirs) and theirs and outcome.count > 0:
            yield f"{attacker.name}: {statement}: {outcome.count} rows"
    for statement in (
        f"TRUNCATE {name}",
        f"TRUNCATE {name} CASCADE",
        f"COPY {name} TO PROGRAM 'cat'",
        f"CREATE TRIGGER t AFTER INSERT ON {name} FOR EACH STATEMENT"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY",
        f"CREATE POLICY mine ON {name} USING (true)",
    ):
        if not attacker.try_(statement).code:
            yield f"{attacker.name}: {statement}: done"


def _oracles(world: World, attacker: Attacker, table: Relation) -> Iterator[str]:
    """Constraints must answer for what is theirs as for what is nobody's."""
    ours, theirs = (world.rows(table, c.tenant)[0] for c in (world.ours, world.theirs))
    own = {table.owner: ours[table.owner or ""]}
    insertable = attacker.may(table.name, "INSERT") or list(ours)
    columns = ", ".join(insertable)
    insert = (
        f"INSERT INTO {table.name} ({columns}) SELECT {columns}"
        f" FROM jsonb_populate_record(NULL::{table.name}, %s)"
    )
    nobodys = {c: _nobodys(v) for c, v in theirs.items()}
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("their row", theirs, nobodys),
        ("their row as ours", theirs | own, nobodys | own),
        *((f"their {c}", ours | {c: theirs[c]}, ours | {c: nobodys[c]}) for c in insertable),
    ]
    for what, real, fake in pairs:
        for ending in ("", " ON CONFLICT DO NOTHING"):
            yield from _differ(attacker, insert + ending, what, Jsonb(real), Jsonb(fake))
    for column in attacker.may(table.name, "UPDATE"):
        update = (
            f"UPDATE {table.name} SET {column} = (jsonb_populate_record(NULL::{table.name},"
            f" %s)).{column} WHERE {table.owner} = {world.ours.tenant}"
        )
        yield from _differ(attacker, update, f"their {column}", Jsonb(theirs), Jsonb(nobodys))
        if column == table.owner and attacker.try_(update, [Jsonb(theirs)]).count > 0:
            yield f"{attacker.name}: {update}: rows were given away"


def _differ(
    attacker: Attacker, statement: str, what: str, real: Jsonb, fake: Jsonb
) -> Iterator[str]:
    values = [*real.obj.values(), *fake.obj.values()]
    first = attacker.try_(statement, [real]).without(*values)
    second = attacker.try_(statement, [fake]).without(*values)
    if first != second:
        yield f"{attacker.name}: {statement}: {what} gives {first}, nobody's gives {second}"


def _nobodys(value: Any) -> Any:
    """A value of the same kind that no row has."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value - THEIRS + NOBODYS if value >= THEIRS else value
    if isinstance(value, str) and MARK in value:
        return value.replace(MARK, "zznobody")
    return value


def _sequences(world: World, attacker: Attacker) -> Iterator[str]:
    for (name,) in world.superuser.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"
    ).fetchall():
        for statement in (
            f"SELECT last_value FROM {name}",
            f"SELECT nextval('{name}')",
            f"SELECT setval('{name}', 1)",
            f"SELECT last_value FROM pg_sequences WHERE sequencename = '{name}'",
            f"SELECT pg_sequence_last_value('{name}')",
        ):
            outcome = attacker.try_(statement)
            if _seen(outcome) or (not outcome.code and "setval" in statement):
                yield f"{attacker.name}: {statement}: {outcome}"


def _functions(world: World, attacker: Attacker) -> Iterator[str]:
    """Every function, called with what an attacker could guess of theirs. What it does is kept,
    for the suite to look at their rows afterwards."""
    guesses = {
        "bigint": (world.theirs.tenant, world.theirs.bank.id, 0),
        "integer": (world.theirs.tenant, 0),
        "text": (MARK, f"{MARK}-handbook"),
    }
    for name, kinds in world.superuser.execute(
        "SELECT proname, array(SELECT format_type(t, NULL) FROM unnest(proargtypes) t)"
        " FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'"
        " AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)"
        " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"
    ).fetchall():
        if name in TOLD:
            continue
        for turn in range(3 if kinds else 1):
            given = [
                guesses.get(kind, (None,))[turn % len(guesses.get(kind, (None,)))] for kind in kinds
            ]
            places = ", ".join(f"cast(%s AS {kind})" for kind in kinds)
            statement = f"SELECT to_jsonb(f) FROM {name}({places}) f"
            outcome = attacker.try_(statement, given, undo=False)
            if _seen(outcome, given):
                yield f"{attacker.name}: {name}({given}): {outcome.said}"


def _escalation(attacker: Attacker) -> Iterator[str]:
    """Nobody becomes someone else, makes a place of their own, or turns the rules off."""
    for statement in (
        "SET ROLE membank_owner",
        "SET ROLE membank_admin",
        "SET ROLE membank_worker" if attacker.role != "membank_worker" else "SET ROLE membank_app",
        "SET SESSION AUTHORIZATION postgres",
        "SET session_replication_role = replica",
        "CREATE TEMPORARY TABLE document (tenant_id bigint)",
        "CREATE TABLE mine (x int)",
        "CREATE FUNCTION current_tenant(x int) RETURNS int LANGUAGE sql RETURN 1",
        "CREATE SCHEMA mine",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "GRANT membank_admin TO CURRENT_USER",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT inner_pad FROM context_key",
        "SELECT passwd FROM pg_shadow",
    ):
        if not attacker.try_(statement).code:
            yield f"{attacker.name}: {statement}: done"
    hidden = attacker.try_("SET row_security = off; SELECT to_jsonb(d) FROM document d")
    if _seen(hidden):
        yield f"{attacker.name}: row_security = off: {_seen(hidden)}"

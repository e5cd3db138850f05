"""What the soak's clients do: ask in every way, go away in the middle, ask for what cannot be."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.demo import sample
from app.demo.sample import Question

_LONGEST = 120.0
_MODES = ("memory", "memory", "memory", "rag", "closed")


@dataclass
class Seen:
    """What a client saw: requests by what they were, and every promise that did not hold.

    away: requests that found the service ended, or that it ended in.
    """

    requests: Counter[str] = field(default_factory=Counter)
    away: int = 0
    faults: list[str] = field(default_factory=list)


class Client:
    """One principal of one tenant, asking without pause until it is told to stop."""

    def __init__(self, number: int, url: str, tenant: str, key: str, seed: str) -> None:
        self.seen = Seen()
        self._tenant, self._random = tenant, random.Random(f"{seed} {number}")
        self._questions = [one for one in sample.questions() if tenant in one.answers]
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=_LONGEST
        )

    def run(self, over: threading.Event) -> None:
        deeds = (
            *[self.ask] * 6,
            *[self.ask_streaming] * 3,
            self.go_away,
            self.list_models,
            self.ask_in_vain,
        )
        with self._http:
            while not over.is_set():
                deed = self._random.choice(deeds)
                try:
                    deed()
                    self.seen.requests[deed.__name__] += 1
                except httpx.TransportError:
                    self.seen.away += 1
                    over.wait(0.05)

    def ask(self) -> None:
        asked, body = self._body()
        response = self._http.post("/v1/chat/completions", json=body)
        if self._is(response, 200):
            message = response.json()["choices"][0]["message"]
            self._judge(asked, body, message["content"], message["annotations"])

    def ask_streaming(self) -> None:
        asked, body = self._body(stream=True)
        said, cited, ended = "", [], False
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if not self._is(response, 200):
                return
            for line in response.iter_lines():
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = httpx.Response(200, content=line[6:]).json()
                    if "error" in event:
                        self.seen.faults.append(f"an error in a stream: {event['error']}")
                        return
                    for choice in event["choices"]:
                        said += choice["delta"].get("content") or ""
                        cited += choice["delta"].get("annotations") or []
        if not ended:
            raise httpx.RemoteProtocolError("the stream was cut off")
        self._judge(asked, body, said, cited)

    def go_away(self) -> None:
        _, body = self._body(stream=True)
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if self._is(response, 200):
                next(response.iter_lines(), None)

    def list_models(self) -> None:
        response = self._http.get("/v1/models")
        if self._is(response, 200):
            names = [one["id"] for one in response.json()["data"]]
            if names != [sample.BANK]:
                self.seen.faults.append(f"{self._tenant} is shown the banks {names}")

    def ask_in_vain(self) -> None:
        _, body = self._body()
        wrong: dict[str, Any] = self._random.choice(
            [{"model": "not there"}, {"messages": []}, {"membank": {"colour": 1}}]
        )
        response = self._http.post("/v1/chat/completions", json=body | wrong)
        if response.status_code not in (400, 404) or "error" not in response.json():
            self.seen.faults.append(f"{wrong} was answered with {response.status_code}")

    def _body(self, stream: bool = False) -> tuple[Question, dict[str, Any]]:
        asked = self._random.choice(self._questions)
        return asked, {
            "model": sample.BANK,
            "messages": [{"role": "user", "content": asked.question}],
            "stream": stream,
            "max_tokens": self._random.choice([8, 32]),
            "membank": {"k": self._random.randint(1, 5), "mode": self._random.choice(_MODES)},
        }

    def _is(self, response: httpx.Response, status: int) -> bool:
        if response.status_code == status:
            return True
        response.read()
        self.seen.faults.append(f"{response.status_code} instead of {status}: {response.text}")
        return False

    def _judge(
        self, asked: Question, body: dict[str, Any], said: str, cited: list[dict[str, Any]]
    ) -> None:
        """Nothing of another tenant, and a source for what is read from the bank."""
        if not said:
            self.seen.faults.append(f"{asked.question!r} was answered with nothing")
        if body["membank"]["mode"] == "closed":
            return
        ours = asked.answers[self._tenant]
        for tenant, answers in asked.answers.items():
            leaked = [one for one in answers if tenant != self._tenant and one in said]
            if leaked and not any(one in said for one in ours):
                self.seen.faults.append(f"{self._tenant} is told {leaked} of {tenant}")
        for one in cited:
            source = one["file_citation"]["filename"]
            if f"/{self._tenant}/" not in source and not source.startswith(self._tenant):
                self.seen.faults.append(f"{self._tenant} is cited {source}")

"""The official client of OpenAI against the service: real database, worker and models."""

import contextlib
import functools
import io
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.answer.ask import NOTHING
from app.answer.engine import Engine, Job
from app.answer.question import Question
from app.api.application import create
from app.api.http.bridge import SEARCHES
from app.bank.entries import entry_id
from app.ingest.command import run as ingest
from app.local.processes import wait_until
from app.local.stack import Stack
from app.memory.decode import generate
from app.memory.decode.generate import Wanted
from app.memory.shares import Shares
from app.runtime.identity import profile
from app.runtime.models import generator
from app.settings import settings
from tests.e2e.conftest import make_tenant
from tests.edges import add_bank, issue
from tests.serving import served

FACTS = {
    "leave": "# Annual Leave\n\nEvery employee of Delta has 27 days of annual leave.\n",
    "dogs": "# Office Dogs\n\nAt Delta dogs may come to the office on Friday.\n",
    "safe": "# Attic Safe\n\nThe code of the safe in the attic of Delta is 112299.\n",
}
LEAVE = "How many days of annual leave does an employee of Delta have?"
SAFE = "What is the code of the safe in the attic of Delta?"


class Noted:
    """The engine of the service, and what it was asked to compute."""

    def __init__(self, engine: Engine) -> None:
        self.jobs: list[Job] = []
        self._engine = engine

    def __call__(self, question: Question, wanted: Wanted, tenant: int) -> Job:
        job = self._engine(question, wanted, tenant)
        self.jobs.append(job)
        return job


@pytest.fixture(scope="module")
def delta(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("delta")
    make_tenant("delta", ("alice", []), ("hana", ["hr"]))
    add_bank("delta", "closed", profile().id, profile().json(), closed=True)
    make_tenant("epsilon", ("eve", []))
    for name, words in FACTS.items():
        (root / f"{name}.md").write_text(words)
        allow = ("group:hr",) if name == "safe" else ("everyone",)
        ingest([root / f"{name}.md"], "delta", "handbook", allow, False, True)
    return root


@pytest.fixture(scope="module")
def computes(delta: Path) -> Iterator[Noted]:
    generator("memory")
    engine = Engine(8)
    yield Noted(engine)
    engine.close()


@pytest.fixture(scope="module")
def address(computes: Noted) -> Iterator[str]:
    with served(create(computes)) as url:
        yield url


def client_of(address: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def key(delta: Path) -> str:
    return issue("delta", "hana").token


@pytest.fixture
def hana(address: str, key: str) -> Iterator[openai.OpenAI]:
    with client_of(address, key) as client:
        yield client


@pytest.fixture
def alice(address: str) -> Iterator[openai.OpenAI]:
    with client_of(address, issue("delta", "alice").token) as client:
        yield client


@pytest.fixture
def post(address: str, key: str) -> Callable[..., httpx.Response]:
    def send(path: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return httpx.post(f"{address}{path}", content=content, headers=headers, timeout=120)

    return send


def ask(client: openai.OpenAI, *said: str, model: str = "handbook", **how: Any) -> Any:
    """`said`: what user and assistant said in turn."""
    roles = ("user", "assistant")
    messages: Any = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    return client.chat.completions.create(model=model, messages=messages, **how)


def joined(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


class TestAnswer:
    def test_comes_from_the_bank_with_its_source_its_end_and_its_use(
        self, hana: openai.OpenAI, delta: Path
    ) -> None:
        answer = ask(hana, LEAVE)
        (choice,) = answer.choices
        assert "27" in choice.message.content
        assert (answer.object, answer.model, choice.finish_reason) == (
            *("chat.completion", "handbook", "stop"),
        )
        (cited,) = choice.message.annotations
        assert cited.type == "file_citation"
        assert cited.file_citation["filename"] == str(delta / "leave.md")
        assert cited.file_citation["index"] == len(choice.message.content)
        place = cited.membank
        assert cited.file_citation["file_id"] == entry_id(place["document_id"])
        assert place["title"] == "Annual Leave"
        said = FACTS["leave"][place["start"] : place["end"]]
        assert "27 days" in said
        assert 0.4 < place["score"] <= 1
        assert 0 < place["attention"] < 1
        assert place["text"] is None
        use = answer.usage
        assert use.total_tokens == use.prompt_tokens + use.completion_tokens
        assert min(use.prompt_tokens, use.completion_tokens, use.memory_tokens) > 0

    def test_is_the_same_in_a_stream_with_the_same_citations(self, hana: openai.OpenAI) -> None:
        whole = ask(hana, LEAVE)
        chunks = list(ask(hana, LEAVE, stream=True, stream_options={"include_usage": True}))
        message = whole.choices[0].message
        assert joined(chunks) == message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        (cited,) = [c for c in chunks if c.choices and hasattr(c.choices[0].delta, "annotations")]
        streamed = cited.choices[0].delta.annotations
        assert streamed == [one.to_dict() for one in message.annotations]
        *_, before, last, use = chunks
        assert (before, last.choices[0].finish_reason) == (cited, "stop")
        assert (use.choices, use.usage) == ([], whole.usage)
        assert len({(c.id, c.created, c.model) for c in chunks}) == 1

    def test_without_usage_a_stream_ends_with_the_last_choice(self, hana: openai.OpenAI) -> None:
        chunks = list(ask(hana, LEAVE, stream=True))
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)

    def test_says_so_when_nothing_may_be_read(self, alice: openai.OpenAI) -> None:
        answer = ask(alice, SAFE)
        assert answer.choices[0].message.content == NOTHING
        assert answer.choices[0].message.annotations == []
        chunks = list(ask(alice, SAFE, stream=True))
        assert joined(chunks) == NOTHING
        assert not any(hasattr(c.choices[0].delta, "annotations") for c in chunks)

    def test_is_under_the_rights_of_the_keys_principal(self, hana: openai.OpenAI) -> None:
        assert "112299" in ask(hana, SAFE).choices[0].message.content

    def test_ends_at_a_stop_text_and_at_the_longest(self, hana: openai.OpenAI) -> None:
        stopped = ask(hana, LEAVE, stop=["27", "never"]).choices[0]
        assert "27" not in stopped.message.content
        assert stopped.finish_reason == "stop"
        for limit in ("max_tokens", "max_completion_tokens"):
            short = ask(hana, LEAVE, **{limit: 2})
            assert short.choices[0].finish_reason == "length"
            assert short.usage.completion_tokens == 2

    def test_drawn_with_a_seed_is_the_same_again(self, hana: openai.OpenAI) -> None:
        def drawn(seed: int) -> str:
            how: dict[str, Any] = {"temperature": 2.0, "top_p": 0.99, "seed": seed}
            answer = ask(hana, LEAVE, model="handbook@none", max_tokens=12, **how)
            content = answer.choices[0].message.content
            assert isinstance(content, str)
            return content

        assert drawn(7) == drawn(7)
        assert len({drawn(seed) for seed in range(4)}) > 1

    @pytest.mark.parametrize("mode", ["rag", "closed"])
    def test_in_other_modes(self, hana: openai.OpenAI, mode: str) -> None:
        answer = ask(
            hana, LEAVE, max_tokens=24, extra_body={"membank": {"mode": mode, "explain": True}}
        )
        assert answer.membank["mode"] == mode
        cited = answer.choices[0].message.annotations
        assert len(cited) == (1 if mode == "rag" else 0)
        if cited:
            assert "27" in answer.choices[0].message.content
            assert cited[0].membank["attention"] is None or cited[0].membank["attention"] > 0

    def test_explained_has_texts_and_times(self, hana: openai.OpenAI) -> None:
        options = {"membank": {"explain": True, "k": 2, "threshold": -1}}
        answer = ask(hana, LEAVE, extra_body=options)
        cited = answer.choices[0].message.annotations
        assert len(cited) == 2
        assert "27 days" in cited[0].membank["text"]
        assert answer.membank["timings_ms"]["first_token"] > 0
        *_, last = ask(hana, LEAVE, extra_body=options, stream=True)
        assert last.membank["timings_ms"]["total"] > 0

    def test_is_the_same_among_many_at_once(self, hana: openai.OpenAI) -> None:
        questions = [LEAVE, SAFE, "On which day may dogs come to the office of Delta?"]
        alone = [ask(hana, question).choices[0].message for question in questions]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda question: ask(hana, question), questions * 4))
        for expected, answer in zip(alone * 4, together, strict=True):
            message = answer.choices[0].message
            assert message.content == expected.content
            assert message.annotations[0].file_citation == expected.annotations[0].file_citation


class TestDialogue:
    def test_a_question_that_says_nothing_alone_is_searched_with_what_was_said(
        self, hana: openai.OpenAI
    ) -> None:
        follows = ask(hana, "May dogs come to the office of Delta?", "Yes.", "On which day?")
        cited = follows.choices[0].message.annotations
        assert [one.membank["title"] for one in cited] == ["Office Dogs"]

    def test_messages_of_every_kind_are_taken(self, hana: openai.OpenAI) -> None:
        messages: Any = [
            {"role": "assistant", "content": "Hello, how can I help?"},
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": "I have"},
            {"role": "user", "content": [{"type": "text", "text": "a question."}]},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "Ask it."},
            {"role": "user", "content": [{"type": "text", "text": LEAVE}]},
        ]
        answer = hana.chat.completions.create(model="handbook", messages=messages)
        assert "27" in (answer.choices[0].message.content or "")

    def test_a_long_one_loses_its_beginning_and_is_answered(self, hana: openai.OpenAI) -> None:
        long = ["word " * 400 if n % 2 == 0 else "Yes." for n in range(60)]
        answer = ask(hana, *long, LEAVE, max_tokens=4)
        assert 100 < answer.usage.prompt_tokens < 1200

    def test_one_that_does_not_end_with_the_user_is_refused(self, hana: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="the last message must be the user's"):
            ask(hana, LEAVE, "27 days")


class TestRefusal:
    def test_of_a_wrong_key(self, address: str, key: str) -> None:
        for wrong in ("sk-123", key[:-43] + "A" * 43):
            with (
                client_of(address, wrong) as client,
                pytest.raises(openai.AuthenticationError) as caught,
            ):
                ask(client, LEAVE)
            assert caught.value.code == "invalid_api_key"
            assert "A" * 43 not in str(caught.value)

    @pytest.mark.parametrize("model", ["closed", "nothing", "handbook@nothing", "handbook@/etc"])
    def test_of_a_bank_or_an_adapter_that_is_not_there_for_the_caller(
        self, hana: openai.OpenAI, model: str
    ) -> None:
        for how in ({}, {"stream": True}):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(hana, LEAVE, model=model, **how)
            assert caught.value.code == "model_not_found"

    def test_of_another_tenants_bank(self, address: str) -> None:
        with client_of(address, issue("epsilon", "eve").token) as eve:
            answer = ask(eve, LEAVE)  # it has a bank of that name itself, without documents
            assert answer.choices[0].message.content == NOTHING
            with pytest.raises(openai.NotFoundError):
                ask(eve, LEAVE, model="closed")

    @pytest.mark.parametrize(
        ("how", "status", "told"),
        [
            ({"membank": {"kk": 1}}, 400, "membank.kk"),
            ({"membank": {"k": 0}}, 400, "membank.k"),
            ({"membank": {"mode": "x"}}, 400, "membank.mode"),
            ({"membank": {"threshold": 1e999}}, 400, "threshold"),
            ({"membank": {"filters": {"type": "eq", "key": "nope", "value": 1}}}, 422, "nope"),
            ({"membank": {"filters": {"type": "no"}}}, 422, "type"),
            ({"n": 2}, 400, "n:"),
            ({"stop": list("abcde")}, 400, "stop"),
            ({"max_tokens": 0}, 400, "max_tokens"),
            ({"max_tokens": 10**6}, 400, "window"),
            ({"max_tokens": 10**30}, 400, "max_tokens"),
            ({"seed": 2**63}, 400, "seed"),
            ({"temperature": float("nan")}, 400, "temperature"),
            ({"top_p": 0}, 400, "top_p"),
            ({"messages": []}, 400, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "type"),
            ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "content"),
            ({"membank": {"\ud800": 1}}, 400, "membank"),
            ({"model": "\ud800"}, 400, "model"),
            ({"model": "a\x00b"}, 404, "bank"),
            ({"model": "", "messages": None}, 400, "model"),
        ],
    )
    def test_of_what_cannot_be_done_names_it(
        self, post: Callable[..., httpx.Response], how: dict[str, Any], status: int, told: str
    ) -> None:
        body = {"model": "handbook", "messages": [{"role": "user", "content": LEAVE}]} | how
        refused = post("/v1/chat/completions", body)
        assert refused.status_code == status, refused.text
        error = refused.json()["error"]
        assert told in f"{error['message']} {error['param']}"
        assert set(error) == {"message", "type", "param", "code"}

    @pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"1" * 5000, b'{"a": \xff}'])
    def test_of_what_is_no_json(self, post: Callable[..., httpx.Response], body: bytes) -> None:
        assert post("/v1/chat/completions", body).status_code == 400

    def test_not_of_fields_that_openai_has_and_we_ignore(self, hana: openai.OpenAI) -> None:
        ignored: dict[str, Any] = {"presence_penalty": 1.0, "user": "me", "logprobs": True}
        assert "27" in ask(hana, LEAVE, **ignored).choices[0].message.content

    def test_when_too_many_are_being_answered(
        self, address: str, hana: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settings(), "requests_at_once", 1)
        with served(create(_waiting := Waiting())) as url, client_of(url, hana.api_key) as client:
            first = threading.Thread(target=lambda: ask(client, LEAVE))
            first.start()
            assert _waiting.begun.wait(60)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client, LEAVE)
            assert caught.value.response.headers["retry-after"] == "1"
            _waiting.go_on.set()
            first.join()


class Waiting:
    """Says a word, waits to be told or cancelled, and says another."""

    def __init__(self, first: bool = True) -> None:
        self.begun, self.go_on, self.cancelled = (threading.Event() for _ in range(3))
        self._first, self.shares = first, Shares()

    def __call__(self, *_: object) -> "Waiting":
        return self

    def __iter__(self) -> Iterator[str]:
        if self._first:
            yield "One"
        self.begun.set()
        assert self.go_on.wait(60)
        yield " two"

    def generation(self) -> generate.Generation:
        return generate.Generation("", [], 1, 0, 0.0, 0.0, "stop")

    def cancel(self) -> None:
        self.cancelled.set()
        self.go_on.set()


class TestEnd:
    """Of an answer that nobody waits for, or that takes too long."""

    def test_a_client_that_leaves_a_stream_ends_it(
        self, hana: openai.OpenAI, computes: Noted
    ) -> None:
        stream = ask(hana, "Tell me of dogs.", stream=True, max_tokens=4000,
                     model="handbook@none", extra_body={"membank": {"mode": "closed"}})  # fmt: skip
        for _, _ in zip(range(3), stream, strict=False):
            pass
        job = computes.jobs[-1]
        stream.response.close()
        assert wait_until(lambda: job.cancelled, 30)
        assert job.generation().finished is None

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("first", [False, True])
    def test_a_client_that_goes_away_cancels_at_any_time(
        self, address: str, key: str, stream: bool, first: bool
    ) -> None:
        with served(create(waits := Waiting(first))) as url:
            body = {"model": "handbook", "messages": [{"role": "user", "content": LEAVE}]}
            headers = {"Authorization": f"Bearer {key}"}
            with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=60) as client:
                request = client.build_request(
                    "POST", f"{url}/v1/chat/completions", json=body | {"stream": stream},
                    headers=headers, timeout=httpx.Timeout(60, read=1.0),
                )  # fmt: skip
                client.send(request)
            assert waits.cancelled.wait(30)

    @pytest.mark.parametrize(
        ("first", "stream", "seconds"), [(False, False, 0.3), (False, True, 0.3), (True, True, 5)]
    )
    def test_its_time_limit_is_an_error_before_the_first_piece_and_an_event_after_it(
        self, key: str, first: bool, stream: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settings(), "request_seconds", seconds)
        with served(create(waits := Waiting(first))) as url, client_of(url, key) as client:
            with pytest.raises(openai.APIError) as caught:
                list(ask(client, LEAVE, stream=stream))
            assert caught.value.code == "timeout"
            if not first:
                assert isinstance(caught.value, openai.InternalServerError)
                assert caught.value.status_code == 504
            assert waits.cancelled.wait(30) or not waits.begun.is_set()

    def test_one_that_waits_for_its_search_is_never_begun(
        self, address: str, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = create(waits := Waiting())
        for _ in range(SEARCHES):
            assert app.state.bridge._searches.acquire()
        with served(app) as url, client_of(url, key).with_options(timeout=1) as client:
            with pytest.raises(openai.APITimeoutError):
                ask(client, LEAVE)
            time.sleep(0.2)  # the server hears of it
            for _ in range(SEARCHES):
                app.state.bridge._searches.release()
            assert wait_until(lambda: not app.state.bridge._held, 30)
        assert not waits.begun.is_set()


def test_the_models_are_the_banks(hana: openai.OpenAI) -> None:
    assert [model.id for model in hana.models.list()] == ["handbook"]
    assert hana.models.retrieve("handbook").owned_by == "delta"


PAGE = (Path(__file__).parents[2] / "docs/how-to/openai-client.md").read_text()


@pytest.fixture
def as_the_page_says(address: str, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", issue("delta", "hana", ("read", "write")).token)


@pytest.mark.usefixtures("as_the_page_says")
def test_the_examples_in_python_print_what_they_say() -> None:
    printed = []
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        out = io.StringIO()
        names: dict[str, Any] = {"print": functools.partial(print, file=out)}
        exec(compile(code, "openai-client.md", "exec"), names)  # noqa: S102
        if "store" in names:
            names["client"].vector_stores.delete(names["store"].id)
        names["client"].close()
        printed.append(out.getvalue())
    whole, streamed, follows, refused, files = printed
    assert "27" in whole
    assert "Annual Leave" in whole
    assert whole.splitlines()[0] in streamed
    assert "leave.md" in streamed
    assert "tokens:" in streamed
    assert "first_token" in follows
    assert "Friday" in follows
    assert refused == "model_not_found\n"
    assert files.startswith("completed None\nparking.md ")
    assert files.splitlines()[-1].lower().count("four") == 1


@pytest.mark.usefixtures("as_the_page_says")
def test_the_examples_with_curl_run() -> None:
    printed = []
    for code in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(
            ["bash", "-ec", code], capture_output=True, text=True, timeout=120, check=True
        )
        printed.append(done.stdout)
    whole, streamed, listed = printed
    assert "27" in json.loads(whole)["choices"][0]["message"]["content"]
    assert streamed.endswith("data: [DONE]\n\n")
    assert json.loads(listed)["data"][0]["id"] == "handbook"

"""Questions to a bank, as OpenAI's chat completions."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.access.identity import Identity
from app.answer.ask import Answer, Answering, Generates
from app.answer.question import Question
from app.answer.recall import Source
from app.api.http.bridge import Bridge, GoneError, Running
from app.api.http.caller import MayRead
from app.api.http.conditions import Filters
from app.api.http.errors import error_body, responses, shape
from app.api.http.fields import Text
from app.api.openai.dialogue import Dialogue, Message
from app.api.openai.models import reader
from app.bank.entries import entry_id
from app.bank.filters import parse
from app.errors import MembankError
from app.memory.decode.generate import Sampling
from app.runtime.identity import count_tokens
from app.runtime.models import Mode, models
from app.settings import settings

router = APIRouter(prefix="/v1", tags=["chat"])
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}
_LONGEST = 256
"""Tokens of an answer where the request says nothing of it."""


class Options(BaseModel):
    """What only a bank can be asked. What is not given is as the settings say."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Mode = "memory"
    filters: Filters | None = None
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    explain: bool = False


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class ChatRequest(BaseModel):
    """A question with the dialogue before it. `model`: BANK or BANK@ADAPTER."""

    model: Annotated[Text, Field(min_length=1, max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Literal[1] | None = None
    membank: Options = Options()

    def answering(self, who: Identity, generates: Generates) -> Answering:
        """The answer, begun. Raises what the routes answer as errors."""
        asks, adapter = reader(who, self.model)
        dialogue, longest = Dialogue.of(self.messages), self._longest
        # Text in the prompt takes a part of the window that is known only after the search.
        window = models().window if self.membank.mode != "rag" else models().window // 2
        dialogue = dialogue.fitting(window - longest, count_tokens)
        question = Question(
            dialogue.question,
            dialogue.turns,
            self.membank.k,
            self.membank.mode,
            longest,
            self.membank.threshold,
            None if self.membank.filters is None else parse(self.membank.filters),
            Sampling(self.temperature or 0.0, self.top_p or 1.0, self.seed),
            tuple([self.stop] if isinstance(self.stop, str) else self.stop or ()),
            adapter,
            dialogue.instruction,
        )
        return Answering(asks, question, generates)

    @property
    def _longest(self) -> int:
        return self.max_completion_tokens or self.max_tokens or _LONGEST


class FileCitation(BaseModel):
    """A document that the answer was read from, cited at its end.

    file_id: the uploaded file that gave it, else the id that it has among a vector store's files.
    """

    file_id: str
    filename: str
    index: int


class Citation(BaseModel):
    """The same as the bank knows it.

    start, end: characters of the document's text; score: cosine of question and memory; attention:
    the memory's share of what the model looked at, null for text in the prompt. text: with
    `explain`.
    """

    document_id: str
    title: str
    heading: str
    start: int
    end: int
    score: float
    attention: float | None
    text: str | None = None


class Annotation(BaseModel):
    type: Literal["file_citation"] = "file_citation"
    file_citation: FileCitation
    membank: Citation

    @classmethod
    def of(cls, source: Source, index: int, explain: bool) -> "Annotation":
        file = source.file_id or entry_id(source.document_id)
        cited = FileCitation(file_id=file, filename=source.source, index=index)
        known = {name: getattr(source, name) for name in Citation.model_fields if name != "text"}
        text = source.text if explain else None
        return cls(file_citation=cited, membank=Citation(**known, text=text))


class Usage(BaseModel):
    """Tokens. memory_tokens: entries of the memories that were read, which are in no other."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    memory_tokens: int

    @classmethod
    def of(cls, answer: Answer) -> "Usage":
        used = answer.usage
        total = used["prompt_tokens"] + used["completion_tokens"]
        return cls(**used, total_tokens=total)


class Explanation(BaseModel):
    """How an answer came about: see `Answer`."""

    mode: Mode
    timings_ms: dict[str, float]


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    annotations: list[Annotation]


class Choice(BaseModel):
    index: Literal[0] = 0
    message: Said
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """An answer. `membank` is there with `explain`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    membank: Explanation | None = None


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": _EVENTS}, **responses(404, 504)},
)
async def chat(body: ChatRequest, who: MayRead, request: Request) -> Response:
    """Answer a question from a bank, from what the caller may read of it.

    With `stream`, chunks of chat.completion.chunk are sent as server-sent events, the citations in
    a delta before the last.
    """
    app, reply = request.app, _Reply(body)
    bridge: Bridge = app.state.bridge
    generates: Generates = app.state.generates
    running = bridge.begin(
        who.tenant, lambda: body.answering(who, generates), settings().request_seconds
    )
    try:
        async with running.attended(request.receive):
            said = await running.next()
            while isinstance(said, str) and not body.stream:
                said = await running.next()
    except GoneError:
        return Response(status_code=499)  # as proxies log it
    except BaseException:
        running.cancel()
        raise
    if body.stream:
        return _Events(reply.events(running, said))
    assert isinstance(said, Answer)  # noqa: S101 (the loop above)
    content = reply.whole(said).model_dump_json(exclude_none=False)
    return Response(content, media_type="application/json")


class _Events(StreamingResponse):
    """Server-sent events that end when the caller goes away, also between two of them."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # From 2.4 on starlette waits for the next piece to find that out.
        await super().__call__({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)


@dataclass(frozen=True)
class _Reply:
    """What is the same in all that is sent for a request."""

    body: ChatRequest
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> ChatCompletion:
        said = Said(content=answer.answer, annotations=self._annotations(answer))
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.body.model,
            choices=[Choice(message=said, finish_reason=answer.finished or "stop")],
            usage=Usage.of(answer),
            membank=self._explanation(answer),
        )

    async def events(self, running: Running, said: str | Answer) -> AsyncIterator[str]:
        """The answer, of which the first piece is here already, as lines to be sent."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            while isinstance(said, str):
                yield self._chunk({"content": said})
                said = await running.next()
            for line in self._end(said):
                yield line
        except MembankError as error:
            yield _line(shape(error)[1])
        except Exception:
            yield _line(error_body("something went wrong here", "server_error"))
            raise
        finally:
            running.cancel()

    def _end(self, answer: Answer) -> list[str]:
        lines = []
        if cited := self._annotations(answer):
            lines.append(self._chunk({"annotations": [one.model_dump() for one in cited]}))
        explanation = self._explanation(answer)
        more = {} if explanation is None else {"membank": explanation.model_dump()}
        lines.append(self._chunk({}, answer.finished or "stop", **more))
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            lines.append(self._chunk(None, usage=Usage.of(answer).model_dump()))
        return [*lines, "data: [DONE]\n\n"]

    def _annotations(self, answer: Answer) -> list[Annotation]:
        explain, index = self.body.membank.explain, len(answer.answer)
        return [Annotation.of(source, index, explain) for source in answer.memories]

    def _explanation(self, answer: Answer) -> Explanation | None:
        if not self.body.membank.explain:
            return None
        known = {name: getattr(answer, name) for name in Explanation.model_fields}
        return Explanation(**known)

    def _chunk(self, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _line(
            {
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.body.model,
                "choices": [] if delta is None else [choice],
                **more,
            }
        )


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"

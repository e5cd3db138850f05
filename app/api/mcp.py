"""A server of the Model Context Protocol at /mcp: search, ask, add and forget, with the same keys.

It keeps no sessions: every request shows its key, so one that was revoked counts no more.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, TypeVar, cast

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.identity import Identity
from app.answer.ask import Answer, Answering
from app.answer.question import Question
from app.answer.retrieval import find
from app.api.http.bridge import Bridge, Running
from app.api.http.caller import identity_of
from app.api.http.errors import shape
from app.api.openai.models import reader
from app.bank import documents
from app.bank.documents import Draft
from app.bank.filters import parse
from app.bank.find import asked_bank
from app.db.session import transaction
from app.errors import MembankError
from app.ingest.storing import pieces_of
from app.ingest.text import check_characters, normal
from app.runtime.identity import count_tokens, require_splitting
from app.settings import settings

T = TypeVar("T")
PATH = "/mcp"
_LONGEST = 256
_INSTRUCTIONS = (
    "Membank keeps documents as memories in banks. `search` finds passages, `ask` answers from"
    " them, `add` stores a text, `forget` deletes one. You see what the key's principal may read."
)

Bank = Annotated[str, Field(min_length=1, max_length=200, description="Name of the bank.")]
Words = Annotated[str, Field(min_length=1, max_length=100_000, description="The question.")]
Filters = Annotated[
    dict[str, Any] | None,
    Field(description="Conditions on the metadata of documents, as in vector stores."),
]
DocumentId = Annotated[str, Field(min_length=1, max_length=512)]


class Passage(BaseModel):
    """A place in a document; start and end are characters of its text."""

    document_id: str
    title: str
    heading: str
    source: str
    start: int
    end: int
    score: float
    text: str

    @classmethod
    def of(cls, found: Any) -> "Passage":
        return cls(**{name: getattr(found, name) for name in cls.model_fields})


class Found(BaseModel):
    """Passages, the nearest first."""

    results: list[Passage]


class Said(BaseModel):
    """An answer and what it was read from; no sources: it is not from the bank."""

    answer: str
    sources: list[Passage]


class Added(BaseModel):
    """A stored document. It is found as soon as a worker has encoded it."""

    document_id: str
    status: str
    chunks: int


class Forgotten(BaseModel):
    """What was deleted with a document."""

    document_id: str
    chunks: int
    memories: int


def prepare(app: FastAPI) -> None:
    """Put the server at /mcp. It serves while `running` does."""
    server = MCPServer("membank", instructions=_INSTRUCTIONS, subscriptions=False)
    _add_tools(server, app)
    server.streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=settings().max_request_bytes,
        # A page in a browser has no key, so that no name that it gives us lets it in.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    app.state.mcp = server.session_manager
    app.router.routes.append(Route(PATH, _Keyed(server.session_manager.handle_request)))


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Serve while the block runs."""
    async with app.state.mcp.run():
        yield


class _Keyed:
    """Lets in who shows a good key."""

    path = PATH

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await identity_of(Request(scope))
        except MembankError as error:
            status, body = shape(error)
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
            await JSONResponse(body, status, headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _add_tools(server: MCPServer, app: FastAPI) -> None:
    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def search(
        ctx: Context,
        bank: Bank,
        question: Words,
        k: Annotated[int, Field(ge=1, le=50)] = 5,
        filters: Filters = None,
    ) -> Found:
        """Find the passages of a bank that fit a question best."""

        who = _asking(ctx, "read")

        def work() -> Found:
            asks, _ = reader(who, bank)
            where = None if filters is None else parse(filters)
            return Found(
                results=[Passage.of(p) for p in find(asks, question, k, where=where).passages]
            )

        bridge: Bridge = app.state.bridge
        with _told():
            return await bridge.search(who.tenant, work)

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def ask(
        ctx: Context,
        bank: Bank,
        question: Words,
        max_tokens: Annotated[int, Field(ge=1, le=4096)] = _LONGEST,
        filters: Filters = None,
    ) -> Said:
        """Answer a question from a bank's memories, with the sources of the answer."""

        who = _asking(ctx, "read")

        def begin() -> Answering:
            asks, adapter = reader(who, bank)
            where = None if filters is None else parse(filters)
            asked = Question(question, max_tokens=max_tokens, where=where, adapter=adapter)
            return Answering(asks, asked, app.state.generates)

        bridge: Bridge = app.state.bridge
        with _told():
            answer = await _whole(bridge.begin(who.tenant, begin, settings().request_seconds))
            return Said(answer=answer.answer, sources=[Passage.of(s) for s in answer.memories])

    @server.tool()
    async def add(
        ctx: Context,
        bank: Bank,
        title: Annotated[str, Field(max_length=500)],
        text: Annotated[str, Field(min_length=1, description="Plain text or Markdown.")],
        document_id: Annotated[
            DocumentId | None, Field(description="A known one is replaced; without it a new one.")
        ] = None,
    ) -> Added:
        """Store a text in a bank, readable by everyone who may read the bank."""
        return await _in_thread(lambda: _store(_who(ctx, "write"), bank, title, text, document_id))

    @server.tool(annotations=ToolAnnotations(destructive_hint=True))
    async def forget(ctx: Context, bank: Bank, document_id: DocumentId) -> Forgotten:
        """Delete a document and all memories of it, for good."""

        def work() -> Forgotten:
            writer = _who(ctx, "write").asker.in_role("worker")
            check_characters(document_id, "the id")
            with transaction(writer) as connection:
                found = asked_bank(connection, writer, bank)
                deleted = documents.forget(connection, writer, document_id, found.id)
            gone = documents.uncached(found.tenant, *deleted)
            return Forgotten(document_id=document_id, chunks=gone.chunks, memories=gone.blobs)

        return await _in_thread(work)


def _store(who: Identity, bank: str, title: str, text: str, document: str | None) -> Added:
    for value, name in ((title, "the title"), (document or "", "the id")):
        check_characters(value, name)
    body = normal(text, settings().max_document_bytes)
    number = document or uuid.uuid4().hex
    draft = Draft(number, number, title, body, None, {})
    pieces = pieces_of(title, body, count_tokens)
    writer = who.asker.in_role("worker")
    with transaction(writer) as connection:
        found = asked_bank(connection, writer, bank)
        require_splitting(found)
        stored = documents.store(connection, writer, found.id, draft, pieces)
    return Added(document_id=number, status=stored.status, chunks=stored.chunks)


def _who(ctx: Context, scope: str) -> Identity:
    """Who sent the request, which `_Keyed` let in. Raises ForbiddenError without the scope."""
    who: Identity = cast(Request, ctx.request_context.request).state.identity
    who.may(scope)
    return who


def _asking(ctx: Context, scope: str) -> Identity:
    """The same before there is anything else to fail."""
    with _told():
        return _who(ctx, scope)


async def _in_thread(work: Callable[[], T]) -> T:
    with _told():
        return await run_in_threadpool(work)


async def _whole(running: Running) -> Answer:
    """An answer, when it is given. One that nobody waits for any more is given up."""
    try:
        while isinstance(said := await running.next(), str):
            pass
        return said
    finally:
        running.cancel()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Our errors as the tool's, for the model to read."""
    try:
        yield
    except MembankError as error:
        raise ToolError(shape(error)[1]["error"]["message"]) from None

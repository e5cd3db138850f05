"""The HTTP service, put together from its routes."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from app.answer.ask import Generates
from app.api import mcp
from app.api.administration import routes as administration
from app.api.http.bridge import Bridge
from app.api.http.errors import handle_errors
from app.api.http.limits import hold
from app.api.http.watch import Watch
from app.api.openai import (
    chat,
    file_batches,
    files,
    models,
    store_files,
    store_search,
    vector_stores,
)
from app.api.operation import health, metrics
from app.db.addresses import administers
from app.settings import settings


def create(generates: Generates) -> FastAPI:
    """The application. `generates` computes the answers."""
    app = FastAPI(
        title="Membank",
        version="0.1.0",
        docs_url="/docs",
        redoc_url=None,
        lifespan=_lifespan,
        # Behind a proxy it would send clients, and their keys, to this process's own address.
        redirect_slashes=False,
    )
    app.state.generates = generates
    app.state.bridge = Bridge(settings().requests_at_once)
    handle_errors(app)
    hold(app)
    app.add_middleware(Watch)
    health.prepare(app)
    app.include_router(chat.router)
    app.include_router(models.router)
    app.include_router(files.router)
    app.include_router(files.files(settings().max_upload_bytes))
    app.include_router(vector_stores.router)
    app.include_router(store_files.router)
    app.include_router(file_batches.router)
    app.include_router(store_search.router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    if administers():
        app.include_router(administration.router)
    mcp.prepare(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with mcp.running(app):
        yield
    app.state.bridge.close()
    app.state.health.close()

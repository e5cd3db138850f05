"""The HTTP service: its routes put together."""

from fastapi import FastAPI

from app.answer.service import Generates
from app.api.errors import handle_errors


def create(generates: Generates) -> FastAPI:
    """The application. `generates` computes the answers."""
    app = FastAPI(title="Membank", version="0.1.0", docs_url="/docs", redoc_url=None)
    app.state.generates = generates
    handle_errors(app)
    return app

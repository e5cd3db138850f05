"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import (
    BlobError,
    BusyError,
    ConflictError,
    FilterError,
    ForbiddenError,
    MembankError,
    NotFoundError,
    QuotaError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)

# The first class that an error is of: its status, OpenAI's type and code.
_KINDS: tuple[tuple[type[MembankError], int, str, str], ...] = (
    (FilterError, 422, "invalid_request_error", "invalid_filter"),
    (TooLargeError, 413, "invalid_request_error", "too_large"),
    (UsageError, 400, "invalid_request_error", "invalid_value"),
    (UnauthorizedError, 401, "authentication_error", "invalid_api_key"),
    (ForbiddenError, 403, "permission_error", "forbidden"),
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (QuotaError, 429, "insufficient_quota", "insufficient_quota"),
    (BusyError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (UnavailableError, 503, "server_error", "unavailable"),
    (BlobError, 500, "server_error", "damaged_memory"),
    (MembankError, 500, "server_error", "server_error"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def shape(error: MembankError) -> tuple[int, dict[str, Any]]:
    """Status and body of one of our errors."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            return status, error_body(str(error), name, code)
    raise AssertionError("MembankError is the last of the kinds")


def handle_errors(app: FastAPI) -> None:
    """Let `app` answer every failure in OpenAI's shape, and none with what it happened on."""

    @app.exception_handler(MembankError)
    async def ours(_: Request, error: MembankError) -> JSONResponse:
        status, body = shape(error)
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        if status in (429, 503):
            headers["Retry-After"] = "1"
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        body = error_body(f"{place}: {first['msg']}", "invalid_request_error", param=place or None)
        return JSONResponse(body, 422 if first["loc"][0] == "path" else 400)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        kind = _TYPES.get(error.status_code, "invalid_request_error")
        body = error_body(str(error.detail), kind)
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("something went wrong here", "server_error"), 500)

"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException

from app.errors import (
    BlobError,
    BusyError,
    ConflictError,
    FilterError,
    ForbiddenError,
    LateError,
    MembankError,
    ModelNotFoundError,
    NotFoundError,
    ProfileError,
    QuotaError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)

# The first class that an error is of: its status, OpenAI's type and code.
_KINDS: tuple[tuple[type[MembankError], int, str, str], ...] = (
    (FilterError, 422, "invalid_request_error", "invalid_filter"),
    (TooLargeError, 413, "invalid_request_error", "request_too_large"),
    (UsageError, 400, "invalid_request_error", "invalid_value"),
    (UnauthorizedError, 401, "authentication_error", "invalid_api_key"),
    (ForbiddenError, 403, "permission_error", "forbidden"),
    (ModelNotFoundError, 404, "invalid_request_error", "model_not_found"),
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (QuotaError, 429, "insufficient_quota", "insufficient_quota"),
    (BusyError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (UnavailableError, 503, "server_error", "unavailable"),
    (ProfileError, 503, "server_error", "other_profile"),
    (LateError, 504, "server_error", "timeout"),
    (BlobError, 500, "server_error", "damaged_memory"),
    (MembankError, 500, "server_error", "server_error"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {408: "request_timeout", 413: "request_too_large"}


class Error(BaseModel):
    """What went wrong, and the way out."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of every response that reports a failure."""

    error: Error


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The failures in a route's OpenAPI description: `statuses` and those that every route has."""
    every = (400, 401, 403, 408, 409, 413, 422, 429, 500, 503)
    return {status: {"model": Failure} for status in sorted({*statuses, *every})}


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    told = {"message": message, "type": kind, "param": param, "code": code}
    # What a message repeats may be half a character, which no response can hold.
    return {"error": {name: text and _whole(text) for name, text in told.items()}}


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def shape(error: MembankError) -> tuple[int, dict[str, Any]]:
    """Status and body of one of our errors."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            return status, error_body(str(error), name, code)
    raise AssertionError("MembankError is the last of the kinds")


def handle_errors(app: FastAPI) -> None:
    """Make `app` answer every failure in OpenAI's shape, without internals of the service."""

    @app.exception_handler(MembankError)
    async def ours(_: Request, error: MembankError) -> JSONResponse:
        status, body = shape(error)
        return JSONResponse(body, status, _headers(error, status))

    @app.exception_handler(IntegrityError)
    async def raced(_: Request, error: IntegrityError) -> JSONResponse:
        # What a request names was there when it looked: another one came between.
        if getattr(error.orig, "sqlstate", None) not in ("23503", "23505"):
            raise error
        told = "another request changed or deleted what this one names: look again, and repeat it"
        return JSONResponse(error_body(told, "invalid_request_error", "conflict"), 409)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        body = error_body(f"{place}: {first['msg']}", "invalid_request_error", param=place or None)
        return JSONResponse(body, 422 if first["loc"][0] == "path" else 400)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        kind = _TYPES.get(error.status_code, "invalid_request_error")
        body = error_body(str(error.detail), kind, _CODES.get(error.status_code))
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, _: Exception) -> JSONResponse:
        body = error_body("something went wrong here", "server_error")
        # What gives all others their number is inside of this (app/api/http/limits.py).
        number = getattr(request.state, "request_id", None)
        return JSONResponse(body, 500, {"x-request-id": number} if number else None)


def _headers(error: MembankError, status: int) -> dict[str, str]:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, QuotaError):
        headers["x-should-retry"] = "false"  # OpenAI's clients would try again at once
    return headers

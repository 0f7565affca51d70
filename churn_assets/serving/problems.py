"""Refusals: which ones an operation declares, and how the service answers two of them.

The checks that refuse a request are where they belong: in `access`, `schemas`, `rows` and `routes`.
"""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from churn_assets.serving import schemas

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.Problem, "description": "The body is no JSON"},
    401: {"model": schemas.Problem, "description": "No valid key or token"},
    403: {"model": schemas.Problem, "description": "The scope is lacking"},
    413: {"description": "The body is too large", "content": {"text/plain": {}}},
    422: {"model": schemas.InvalidRequest, "description": "A value is not what it has to be"},
    429: {"model": schemas.Problem, "description": "Over the caller's rate"},
    503: {"model": schemas.Problem, "description": "Nothing to serve from yet"},
}

NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.Problem, "description": "The served version has no such customer"}
}


async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """There is nothing to serve from yet."""
    return JSONResponse({"detail": str(error)}, 503)


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """What is wrong and where. The value is left out, because it may be a customer's."""
    assert isinstance(error, RequestValidationError)
    detail = [{name: e[name] for name in ("type", "loc", "msg")} for e in error.errors()]
    return JSONResponse({"detail": detail}, 422)

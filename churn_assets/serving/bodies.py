"""Operations with a body: who sends it is known, and pays for it, before any of it is looked at.

In this order: the caller's right, the body as it comes, each piece charged to the caller's rate,
the caller's turn, and only then the content, in a thread: JSON, validation, the operation. FastAPI
itself would read and validate a body on the event loop before it asks who sent it.

What a body may hold is in `schemas`.
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, get_args

from fastapi import HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from churn_assets.serving.schemas import MAX_BODY_BYTES, MAX_CUSTOMERS
from churn_assets.serving.service import Session
from churn_assets.serving.turns import AtOnce

# As much of a body as costs what one customer costs; the largest body costs a full batch.
BYTES_PER_CUSTOMER = MAX_BODY_BYTES // MAX_CUSTOMERS

# Requests of one caller that a worker reads or keeps waiting, which bounds its memory.
MOST_AT_ONCE = 16

MOST_ERRORS = 20


class BodyRoute(APIRoute):
    """The route of an operation `(body, session) -> Response`, whose body is one of some models."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What Starlette calls for a request to the operation."""
        (allowed,) = self.dependant.dependencies
        (body,) = self.dependant.body_params
        annotation = body.field_info.annotation
        models: list[type[BaseModel]] = [*(get_args(annotation) or [annotation])]
        at_once = AtOnce(MOST_AT_ONCE)

        def answer(content: bytes, session: Session) -> Response:
            response: Response = self.endpoint(validated(content, models), session)
            return response

        async def handle(request: Request) -> Response:
            assert allowed.call
            session: Session = await allowed.call(request)
            with at_once.one(session.caller.name):
                content, paid = await _read(request, session)
                async with session.service.turns.turn(session.caller.name):
                    return await run_in_threadpool(answer, content, replace(session, paid=paid))

        return handle


async def _read(request: Request, session: Session) -> tuple[bytes, int]:
    """The body, and for how many customers the caller has paid with it.

    Raises:
        HTTPException: 400 where it ends too early, 429 over the caller's rate.
        RequestValidationError: It is not declared as JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        where = ("header", "content-type")
        error = {"type": "content_type", "loc": where, "msg": "The content type is no JSON"}
        raise RequestValidationError([error])
    content, paid = bytearray(), 0
    try:
        async for chunk in request.stream():
            content += chunk
            if (due := -(-len(content) // BYTES_PER_CUSTOMER)) > paid:
                session.service.rate_limit.charge(session.caller, due - paid)
                paid = due
    except ClientDisconnect:
        raise HTTPException(400, "The connection ended before the body.") from None
    return bytes(content), paid


def validated(content: bytes, models: list[type[BaseModel]]) -> BaseModel:
    """The body as the model whose fields it has, or the first.

    Raises:
        HTTPException: 400 where it is no JSON.
        RequestValidationError: It is not what the model says, with the first errors.
    """
    try:
        # Half the time of the worst body goes into remembering strings that do not come again.
        parsed = from_json(content, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise HTTPException(400, "The body is no JSON.") from None
    fields = parsed.keys() if isinstance(parsed, dict) else set()
    model = next((m for m in models if fields & m.model_fields.keys()), models[0])
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        errors = [{**each, "loc": ("body", *each["loc"])} for each in found[:MOST_ERRORS]]
        raise RequestValidationError(errors) from None

"""The short way of a plain read past FastAPI's dependency solving, which takes most of its time."""

from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from churn_assets.serving.routes import MAX_ID_LENGTH, unavailable
from churn_assets.serving.rows import Unavailable


class Direct:
    """Middleware: a short way to an operation for the plain requests to it, `METHOD /name/id`.

    FastAPI and its middleware take most of the time of a read to find out which operation it is and
    what that depends on, and these depend on the customer and the caller only. Every other request
    goes on, one with a query, a body or too long an id for example, to where it is told what is
    wrong with it.

    Args:
        app: What every other request goes to.
        router: Has the operations.
        names: The names of those that have a short way.
    """

    def __init__(self, app: ASGIApp, router: APIRouter, names: Collection[str]) -> None:
        self.app = app
        self.operations: dict[str, tuple[str, APIRoute, Any]] = {}
        for route in router.routes:
            if isinstance(route, APIRoute) and route.name in names:
                (session,) = route.dependant.dependencies
                path = route.path.removesuffix("{customer_id:path}")
                for method in route.methods or ():
                    self.operations[path] = method, route, session.call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._way(scope) if scope["type"] == "http" else None
        if way is None:
            await self.app(scope, receive, send)
            return
        customer_id, route, allowed = way
        scope["route"] = route
        request = Request(scope)
        try:
            response = await route.endpoint(customer_id, await allowed(request))
        except HTTPException as error:
            response = await http_exception_handler(request, error)
        except Unavailable as error:
            response = await unavailable(request, error)
        await response(scope, receive, send)

    def _way(self, scope: Scope) -> tuple[str, APIRoute, Any] | None:
        """The customer, the route and the dependency that gives its session."""
        path: str = scope["path"]
        start = path.find("/", 1) + 1
        found = self.operations.get(path[:start])
        plain = (
            found
            and found[0] == scope["method"]
            and not scope["query_string"]
            and 0 < len(path) - start <= MAX_ID_LENGTH
            and "\n" not in path
            and all(
                name != b"transfer-encoding" and (name != b"content-length" or value == b"0")
                for name, value in scope["headers"]
            )
        )
        return (path[start:], *found[1:]) if found and plain else None

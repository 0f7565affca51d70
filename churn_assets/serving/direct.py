"""A short way to an operation for the plain requests to it, `METHOD /name/id`.

FastAPI and its middleware spend most of the time of a read on finding out which operation the
request is for and what that operation depends on. A plain request depends on the customer and the
caller only, so this middleware calls the operation itself. Every other request goes on to FastAPI:
one with a query, with a body or with too long an id, for example. FastAPI also tells the caller
what is wrong with such a request.

What an operation answers is not known here: both ways call the same function of `routes`.
"""

from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from churn_assets.serving.problems import unavailable
from churn_assets.serving.rows import Unavailable
from churn_assets.serving.schemas import MAX_ID_LENGTH

CUSTOMER = "{customer_id:path}"


class Direct:
    """The middleware.

    Args:
        app: Answers every request that is not plain.
        router: Has the operations.
        operations: The names of the operations that get a short way. The path of each ends with
            the customer, and its session is its only dependency.
    """

    def __init__(self, app: ASGIApp, router: APIRouter, operations: Collection[str]) -> None:
        self.app = app
        self.operations: dict[str, tuple[str, APIRoute, Any]] = {}
        routes = {route.name: route for route in router.routes if isinstance(route, APIRoute)}
        for name in operations:
            route = routes[name]
            (session,) = route.dependant.dependencies
            path = route.path.removesuffix(CUSTOMER)
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

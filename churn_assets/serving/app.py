"""The service: its endpoints, what they share, and what runs beside them.

Every read of a customer goes through `Session.read` or `read_one`, which charge the caller's rate,
look the rows up and record them in the audit log before anything is answered. Single reads and
predictions run on the event loop, since they take a fraction of a millisecond; batches and
refreshes run in threads. A watcher looks every second for a new version, a new champion and an
online store that went or came back.

Limits: a rate counts per worker process. TLS is left to the proxy in front.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse

from churn_assets.serving import schemas, telemetry
from churn_assets.serving.direct import Direct
from churn_assets.serving.routes import routes, unavailable
from churn_assets.serving.rows import Unavailable
from churn_assets.serving.service import Service
from churn_assets.settings import Settings

WATCH_SECONDS = 1.0
GARBAGE_OBJECTS = 50_000
PAGE = Path(__file__).parent / "page"

log = logging.getLogger(__name__)


async def invalid_request(request: Request, error: Exception) -> Response:
    """What is wrong and where, without the value that was sent: it may be a customer's."""
    assert isinstance(error, RequestValidationError)
    detail = [{name: e[name] for name in ("type", "loc", "msg")} for e in error.errors()]
    return JSONResponse({"detail": detail}, 422)


def add_page(app: FastAPI) -> None:
    """Serve the files of the page; the browser is told to load nothing else."""

    def add(name: str) -> None:
        @app.get("/" if name == "index.html" else f"/{name}", include_in_schema=False)
        async def file() -> FileResponse:
            return FileResponse(PAGE / name)

    for name in ("index.html", "page.css", "page.js"):
        add(name)


async def watch(service: Service) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            await asyncio.to_thread(service.watch)
        except Exception:  # the next round may fare better, and requests go on meanwhile
            log.exception("The watcher failed.")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load everything before the first request, and let nothing of it be collected."""
    service: Service = app.state.service
    await asyncio.to_thread(service.watch)
    if service.champion.model:
        service.champion.model.predict([{}])
    gc.collect()
    gc.freeze()
    # A request makes some hundred objects and no cycle: look for one less often than by default.
    gc.set_threshold(GARBAGE_OBJECTS, *gc.get_threshold()[1:])
    watcher = asyncio.create_task(watch(service))
    log.info("serving", extra={"fields": service.readiness().model_dump()})
    yield
    watcher.cancel()
    service.close()
    gc.unfreeze()


def create_app(settings: Settings) -> FastAPI:
    """The service of an installation.

    Raises:
        SettingsError: A key is malformed; the message does not show it.
    """
    app = FastAPI(
        title="churn-assets",
        description="Online features and live churn predictions. `x-unit`, `x-window` (days) and "
        "`x-group` of a feature are as in the feature registry.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=schemas.MAX_BODY_BYTES,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={RequestValidationError: invalid_request, Unavailable: unavailable},
    )
    app.state.service = Service(settings)
    router = routes(app.state.service.groups)
    app.add_middleware(Direct, router=router, names=["features", "predict_customer"])
    app.add_middleware(telemetry.Telemetry)  # around everything that was added before it
    app.include_router(router)
    add_page(app)
    return app


def from_environment() -> FastAPI:
    """What a worker process runs."""
    return create_app(Settings.read())

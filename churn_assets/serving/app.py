"""The service put together: its operations, its page, and what runs beside the requests.

A watcher looks every second for a new version, a new champion, an online store that went away or
came back, and a state folder that was replaced.

The operations are in `routes`, and what they share is in `service`.

Limits: a rate counts per worker process. TLS is left to the proxy in front.
"""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse

from churn_assets.serving import schemas, telemetry
from churn_assets.serving.direct import Direct
from churn_assets.serving.problems import invalid_request, unavailable
from churn_assets.serving.routes import operations
from churn_assets.serving.rows import Unavailable
from churn_assets.serving.service import Service
from churn_assets.settings import Settings
from churn_assets.stores.private import keep_private

WATCH_SECONDS = 1.0

GARBAGE_OBJECTS = 50_000

# A read of one customer makes some four calls to the system, and waits for the interpreter after
# each. While a batch runs in a thread each of these waits is as long as this, by default 5 ms.
SWITCH_SECONDS = 0.0005

PAGE = Path(__file__).parent / "page"

log = logging.getLogger(__name__)


def from_environment() -> FastAPI:
    """What a worker process runs."""
    keep_private()
    return create_app(Settings.read())


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
    service = Service(settings)
    router = operations(service.groups)
    app.state.service = service
    app.add_middleware(Direct, router=router, operations=["features", "predict_customer"])
    app.add_middleware(telemetry.Telemetry)  # the last to be added is around all the others
    app.include_router(router)
    for name in ("index.html", "page.css", "page.js"):
        add_file(app, name)
    return app


def add_file(app: FastAPI, name: str) -> None:
    """Serve a file of the page, the index at the root."""

    @app.get("/" if name == "index.html" else f"/{name}", include_in_schema=False)
    async def file() -> FileResponse:
        return FileResponse(PAGE / name)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load everything before the first request, and keep all of it from garbage collection."""
    service: Service = app.state.service
    await asyncio.to_thread(service.watch)
    if service.champion.model:
        service.champion.model.predict([{}])
    gc.collect()
    gc.freeze()
    # A request makes some hundred objects and no cycle, so the search for cycles can be rarer than
    # by default.
    gc.set_threshold(GARBAGE_OBJECTS, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_SECONDS)
    watcher = asyncio.create_task(watch(service))
    log.info("serving", extra={"fields": service.readiness().model_dump()})
    yield
    watcher.cancel()
    service.close()
    gc.unfreeze()


async def watch(service: Service) -> None:
    """Call `Service.watch` again and again, until the task is cancelled."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            await asyncio.to_thread(service.watch)
        except Exception:  # requests go on meanwhile, and the next round may succeed
            log.exception("The watcher failed.")

"""Running the service: worker processes that share metrics, logs and a graceful end."""

import os
import resource
import tempfile

import uvicorn

from churn_assets.serving.telemetry import LOGGING

PROTOCOL = "churn_assets.serving.protocol:Limited"


def run(host: str, port: int, workers: int) -> None:
    """Serve until the process is told to end.

    Args:
        host: Interface to listen on.
        port: 0 takes a free one.
        workers: Processes.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="churn-metrics-") as folder:
        if workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        uvicorn.run(
            "churn_assets.serving.app:from_environment",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            http=PROTOCOL,
            ws="none",
            proxy_headers=False,  # the address of a client is that of its connection
            log_config=LOGGING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
        )

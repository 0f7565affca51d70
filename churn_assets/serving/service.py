"""What requests share: the state of a worker process, and the session of one request.

Every read of a customer goes through `Session.read` or `Session.read_one`. These charge the
caller's rate, look the rows up and record the read in the audit log before anything is answered.

Everything that a worker knows of the state folder is in a `StateFolder`. When another folder takes
its place, another `StateFolder` does too, so nothing of the old one is served on. A service never
makes a state folder that is gone: who restores one would find a folder in its place.

What is read and answered for a path is in `routes`.
"""

import datetime as dt
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Request
from fastapi.security import HTTPBearer

from churn_assets.cutoffs import midnight, utc_now
from churn_assets.features import Groups, feature_columns, feature_groups, sensitive_features
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.metrics import Economics
from churn_assets.operations.installation import offline_store
from churn_assets.serving import schemas, telemetry
from churn_assets.serving.access import Access, Caller, RateLimit
from churn_assets.serving.audit import AuditLog
from churn_assets.serving.batching import Batcher
from churn_assets.serving.held import hold, leads_to, let_go
from churn_assets.serving.live_champion import LiveChampion, LiveModel
from churn_assets.serving.rows import Found, Row, Rows
from churn_assets.serving.turns import AtOnce, Turns
from churn_assets.settings import Settings
from churn_assets.stores.identity import FILE, AnotherInstallation, refuse_another

log = logging.getLogger(__name__)


class StateFolder:
    """What a worker knows of the state folder that it found.

    Args:
        settings: Of the service. A folder that was made with others is not served.
        groups: The feature groups.
    """

    def __init__(self, settings: Settings, groups: Groups) -> None:
        self._file = settings.home / FILE
        self._held = hold(self._file)
        try:
            self._identity = refuse_another(settings)
            away = "it was not looked for yet" if self._identity else "nothing was published yet"
        except AnotherInstallation as error:
            self._identity, away = None, "the state folder cannot be used; the log says why"
            log.error("%s", error)
        self.rows = Rows(settings.home, settings.redis_url, self._identity, away)
        self._models = ModelStore(settings.home)
        self._sensitive = sensitive_features(groups)
        # Versions of models, and whether one has learned from a sensitive feature.
        self._told: dict[str, bool] = {}
        self.champion = LiveChampion(
            self._models,
            settings.calendar(),
            groups,
            Economics.of(settings).threshold,
        )

    @property
    def name(self) -> str:
        """Of the installation; empty where the folder says none."""
        return self._identity.name if self._identity else ""

    def is_there(self) -> bool:
        """Whether it was neither deleted nor replaced nor given another name since."""
        return leads_to(self._file, self._held)

    def watch(self) -> None:
        """Follow the online store and the choice of champion."""
        if self._identity:
            self.rows.watch()
            self.champion.watch()
            self._look_up_models()

    def tells(self, model_version: str) -> bool:
        """Whether predictions of a model may tell of sensitive features.

        Models of now never learn from them; those of older releases have.
        """
        return self._told.get(model_version, True)

    def _look_up_models(self) -> None:
        served = self.rows.snapshot.model_versions if self.rows.snapshot else frozenset()
        for version in served - self._told.keys():
            manifest = self._models.of_version(version)
            self._told[version] = manifest is None or not self._sensitive.isdisjoint(
                column.name for column in manifest.columns
            )

    def close(self) -> None:
        self.rows.close()
        let_go(self._held)


class Service:
    """What all requests of a worker process share.

    Raises:
        SettingsError: A key is malformed; the message does not show it.
    """

    def __init__(self, settings: Settings) -> None:
        self.access = Access.from_settings(settings)
        self.rate_limit = RateLimit(settings.rate_limit)
        self.audit = AuditLog(settings.home)
        self.groups = feature_groups(settings.review_vectors)
        self.feature_names = [column.name for column in feature_columns(self.groups)]
        sensitive = sensitive_features(self.groups)
        self.sensitive_names = [name for name in self.feature_names if name in sensitive]
        self.plain_names = [name for name in self.feature_names if name not in sensitive]
        self.offline = offline_store(settings)
        self.calendar = settings.calendar()
        self.turns, self.refresh_turns = Turns(), Turns()
        self.refreshes = AtOnce(1)
        self.find = Batcher(self._find)
        self.score = Batcher(self._score)
        self._settings = settings
        self._state = StateFolder(settings, self.groups)

    @property
    def installation(self) -> str:
        """The name of the installation whose rows are served; empty where there is none."""
        return self._state.name

    def tells(self, model_version: str) -> bool:
        """See `StateFolder.tells`."""
        return self._state.tells(model_version)

    @property
    def rows(self) -> Rows:
        return self._state.rows

    @property
    def champion(self) -> LiveChampion:
        return self._state.champion

    def _find(self, customer_ids: Sequence[str]) -> list[Found]:
        found = self.rows.read(customer_ids)
        return [Found([row], found.cutoff, found.source, found.stale) for row in found.rows]

    def _score(self, rows: Sequence[Row]) -> list[tuple[LiveModel, dict[str, Any]]]:
        model = self.model
        return [(model, prediction) for prediction in model.predict(rows)]

    @property
    def model(self) -> LiveModel:
        """The champion; raises HTTPException 503 where there is none."""
        if self.champion.model is None:
            raise HTTPException(503, f"There is no model: {self.champion.problem}.")
        return self.champion.model

    def watch(self) -> None:
        """Follow the state folder, the online store and the choice of champion, set the metrics
        about them, and see whether an audit log that failed can be written again.
        """
        self.audit.retry()
        before, state = self.champion.model, self._state
        if not state.is_there():
            log.warning("Another state folder is in the place of the one before; it is served now.")
            state = StateFolder(self._settings, self.groups)
        state.watch()
        if state is not self._state:
            self._state.close()
            self._state = state
        telemetry.ONLINE_UP.set(not self.rows.away)
        cutoff = self.rows.cutoff
        age = (utc_now() - midnight(cutoff)).total_seconds() if cutoff else math.nan
        telemetry.CUTOFF_AGE.set(age)
        model = self.champion.model
        if model is not before:
            for shown, value in ((before, 0), (model, 1)):
                if shown:
                    manifest = shown.manifest
                    telemetry.MODEL_INFO.labels(manifest.model, manifest.version).set(value)

    def readiness(self) -> schemas.Readiness:
        """Whether rows can be served, scored and recorded. A service that answers from a snapshot
        can.
        """
        model, snapshot = self.champion.model, self.rows.snapshot
        champion = f"{model.decision.model} of {model.decision.model_cutoff}" if model else "none"
        checks = {
            "online store": self.rows.away or "ok",
            "features": f"version {snapshot.version}" if snapshot else "no version was seen live",
            "model": ": ".join(filter(None, [champion, self.champion.problem])),
            "audit log": self.audit.problem or "ok",
        }
        ready = bool(model and snapshot and not self.audit.problem)
        return schemas.Readiness(ready=ready, checks=checks)

    def close(self) -> None:
        self._state.close()
        self.audit.close()


@dataclass(frozen=True)
class Session:
    """One request of one caller."""

    service: Service
    caller: Caller
    request_id: str
    # For how many customers the caller has paid with the request's body.
    paid: int = 0

    def charge(self, customers: int) -> None:
        """Raises HTTPException 429 where the caller may not read that many customers now."""
        self.service.rate_limit.charge(self.caller, max(0, customers - self.paid))

    async def read_one(self, action: str, customer_id: str) -> Found:
        """The row of one customer, charged and recorded; it raises what `read` raises."""
        self.service.rate_limit.charge(self.caller, 1)
        found = await self.service.find(customer_id)
        self._record(action, [customer_id], found)
        return found

    def read(self, action: str, customer_ids: Sequence[str]) -> Found:
        """The rows of some customers, charged and recorded.

        Raises:
            HTTPException: 429 over the rate; 503 where the read cannot be recorded.
            Unavailable: There is nothing to serve from.
        """
        self.charge(len(customer_ids))
        found = self.service.rows.read(customer_ids)
        self._record(action, customer_ids, found)
        return found

    def _record(self, action: str, customer_ids: Sequence[str], found: Found) -> None:
        known = [row is not None for row in found.rows]
        self.record(action, found.source, found.cutoff, [*zip(customer_ids, known, strict=True)])
        telemetry.labelled(telemetry.READS, found.source).inc(sum(known))
        telemetry.labelled(telemetry.READS, "missing").inc(len(known) - sum(known))

    def record(
        self,
        action: str,
        source: str = "request",
        cutoff: dt.date | None = None,
        customers: Sequence[tuple[str, bool]] = (),
        rows: int = 0,
    ) -> None:
        """Record a read in the audit log; see `AuditLog.record`.

        Raises:
            HTTPException: 503 where it cannot be recorded.
        """
        try:
            self.service.audit.record(
                installation=self.service.installation,
                request_id=self.request_id,
                caller=self.caller.name,
                action=action,
                sensitive=not self.withheld,
                source=source,
                cutoff=cutoff,
                customers=customers,
                rows=rows,
            )
        except OSError as error:
            log.error("The audit log cannot be written: %s", error)
            raise HTTPException(503, "The audit log cannot be written; see the log.") from None

    @property
    def withheld(self) -> list[str]:
        """The features that the caller may not see."""
        return [] if "sensitive" in self.caller.scopes else self.service.sensitive_names

    def published(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The prediction that was published with a row; None where the caller may not see it."""
        version = row["model_version"]
        if "predict" not in self.caller.scopes or (self.withheld and self.service.tells(version)):
            return None
        return {name: row[name] for name in ("churn_probability", "prediction", "model_version")}

    def visible(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The features of a row that the caller may see."""
        service = self.service
        names = service.plain_names if self.withheld else service.feature_names
        return {name: row[name] for name in names if name in row}


class Allowed(HTTPBearer):
    """A dependency of an operation: the session of a caller who has a scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            scheme_name="bearer", description="An API key, or a JSON web token", auto_error=False
        )
        self.scope = scope

    async def __call__(self, request: Request) -> Session:  # type: ignore[override]
        credentials = await super().__call__(request)
        service: Service = request.app.state.service
        token = credentials.credentials if credentials else None
        caller = service.access.caller(request, token, self.scope)
        request.scope["caller"] = caller.name
        return Session(service, caller, request.scope["request_id"])

"""The HTTP service: online features and live predictions of one customer or many.

Read in this order: `app` (puts the service together), `routes` (the operations), `schemas` (what
they take and give), `service` (what requests share), `access` (who may), `audit` (who did), `rows`
(where a customer's features come from), `scoring` (the champion), `refresh` (one customer computed
anew). The others are about answers and speed: `problems` (refusals), `direct` (a short way for
plain requests), `batching` (one call for many requests), `telemetry` (logs and metrics).

The code location does not import this package.
"""

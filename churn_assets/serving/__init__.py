"""The HTTP service: online features and live predictions of one customer or many.

Read in this order: `app` (endpoints), `schemas` (what they take and give), `access` (who may),
`audit` (who did), `rows` (where a customer's features come from), `scoring` (the champion),
`telemetry` (logs and metrics). The code location does not import this package.
"""

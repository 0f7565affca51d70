-- Google Analytics 4 as BigQuery exports it (the tables events_YYYYMMDD, saved as JSON or Parquet).
-- Columns: https://support.google.com/analytics/answer/7029846
WITH events AS (
    SELECT
        *,
        -- A visitor who never logs in has only the id of the browser. Before a login and after it
        -- a person is therefore two customers.
        coalesce(user_id, user_pseudo_id) AS person,
        CAST(CAST(event_params AS JSON) AS JSON[]) AS params,
        CAST(CAST(items AS JSON) AS JSON[]) AS bought,
        CAST(ecommerce AS JSON) AS ecommerce_values,
        CAST(device AS JSON) ->> '$.category' AS device_category
    FROM source('*events*', 'user_id', 'items', 'ecommerce', 'platform', 'device',
        'event_bundle_sequence_id')
),
-- A purchase or refund is one row per item, everything else one row per event.
lines AS (
    SELECT events.*, line.item, line.number
    FROM events LEFT JOIN LATERAL (
        SELECT unnest(events.bought) AS item, generate_subscripts(events.bought, 1) AS number
    ) AS line ON true
    WHERE event_name IN ('purchase', 'refund', 'in_app_purchase', 'ecommerce_purchase')
        OR line.number IS NULL OR line.number = 1
)

SELECT
    person AS customer_id,
    -- Microseconds since 1970.
    event_timestamp,
    event_name AS event_type,
    CASE WHEN platform IN ('ANDROID', 'IOS') OR device_category IN ('mobile', 'tablet')
        THEN 'mobile' ELSE 'web' END AS channel,
    list_filter(params, lambda p: p ->> '$.key' = 'ga_session_id')[1] ->> '$.value.int_value'
        AS session_id,
    coalesce(
        nullif(ecommerce_values ->> '$.transaction_id', '(not set)'),
        list_filter(params, lambda p: p ->> '$.key' = 'transaction_id')[1] ->> '$.value.string_value'
    ) AS order_id,
    concat_ws('-', event_name, event_timestamp, event_bundle_sequence_id, number) AS event_id,
    coalesce(item ->> '$.item_id', item ->> '$.item_name') AS product_id,
    item ->> '$.quantity' AS quantity,
    -- The currency of the property. An event without items has the value of the whole order.
    CASE
        WHEN event_name = 'refund'
            THEN coalesce(item ->> '$.item_refund', ecommerce_values ->> '$.refund_value')
        WHEN event_name IN ('purchase', 'in_app_purchase', 'ecommerce_purchase')
            THEN coalesce(
                item ->> '$.item_revenue',
                CAST(TRY_CAST(item ->> '$.price' AS DECIMAL(18, 4))
                    * TRY_CAST(item ->> '$.quantity' AS DECIMAL(18, 4)) AS VARCHAR),
                ecommerce_values ->> '$.purchase_revenue')
    END AS amount,
    _file,
    _line
FROM lines

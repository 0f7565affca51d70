-- Google Analytics 4 as BigQuery exports it (the tables events_YYYYMMDD, saved as JSON or Parquet).
-- Columns: https://support.google.com/analytics/answer/7029846
-- Files are read one by one: no row depends on two of them.
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
    SELECT
        events.*,
        line.item,
        line.number,
        event_name IN ('purchase', 'in_app_purchase', 'ecommerce_purchase') AS is_purchase,
        list_filter(params, lambda p: p ->> '$.key' = 'value')[1] -> '$.value' AS value_param,
        CASE WHEN event_name = 'refund' THEN line.item ->> '$.item_refund'
            ELSE coalesce(
                line.item ->> '$.item_revenue',
                CAST(TRY_CAST(line.item ->> '$.price' AS DECIMAL(18, 4)) * coalesce(
                    TRY_CAST(line.item ->> '$.quantity' AS DECIMAL(18, 4)), 1) AS VARCHAR))
        END AS item_value
    FROM events LEFT JOIN LATERAL (
        SELECT unnest(events.bought) AS item, generate_subscripts(events.bought, 1) AS number
    ) AS line ON true
    WHERE is_purchase OR event_name = 'refund' OR line.number IS NULL OR line.number = 1
),
orders AS (
    SELECT *, count(item_value) OVER (PARTITION BY _file, _line) AS items_with_a_value FROM lines
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
    -- In the currency of the property. Where no item has a value, the first one has that of the
    -- whole order.
    CASE
        WHEN NOT is_purchase AND event_name <> 'refund' THEN NULL
        WHEN items_with_a_value > 0 THEN item_value
        WHEN number IS NULL OR number = 1 THEN coalesce(
            CASE WHEN event_name = 'refund' THEN ecommerce_values ->> '$.refund_value'
                ELSE ecommerce_values ->> '$.purchase_revenue' END,
            value_param ->> '$.double_value',
            value_param ->> '$.float_value',
            value_param ->> '$.int_value')
    END AS amount,
    _file,
    _line
FROM orders

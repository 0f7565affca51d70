-- Segment's calls as it stores them (JSON, one a line, also gz): the tracks, and page and screen
-- views. Fields: https://segment.com/docs/connections/spec/track and …/spec/ecommerce/v2
-- Files are read one by one: no row depends on two of them.
WITH calls AS (
    SELECT
        *,
        -- A visitor who is not identified has only the id of the browser. Before a login and after
        -- it a person is therefore two customers.
        coalesce(userId, anonymousId) AS person,
        CAST(properties AS JSON) AS given,
        CAST(CAST(properties AS JSON) -> '$.products' AS JSON[]) AS products,
        CAST(context AS JSON) AS context_values
    FROM source('*tracks*', 'userId', 'anonymousId', 'event', 'properties', 'context')
    WHERE type IN ('track', 'page', 'screen')
),
-- An order is one row per product, everything else one row per call.
lines AS (
    SELECT
        calls.*,
        line.product,
        line.number,
        TRY_CAST(line.product ->> '$.price' AS DECIMAL(18, 4))
            * coalesce(TRY_CAST(line.product ->> '$.quantity' AS DECIMAL(18, 4)), 1) AS line_total
    FROM calls LEFT JOIN LATERAL (
        SELECT unnest(calls.products) AS product, generate_subscripts(calls.products, 1) AS number
    ) AS line ON true
    WHERE event IN ('Order Completed', 'Order Refunded')
        OR line.number IS NULL OR line.number = 1
),
orders AS (
    SELECT
        *,
        coalesce(given ->> '$.revenue', given ->> '$.subtotal', given ->> '$.total')
            AS order_revenue,
        sum(line_total) OVER (PARTITION BY _file, _line) AS order_total
    FROM lines
)

SELECT
    person AS customer_id,
    timestamp AS event_timestamp,
    CASE WHEN type = 'track' THEN event ELSE 'page_view' END AS event_type,
    CASE WHEN type = 'screen' OR context_values ->> '$.device.type' IN ('ios', 'android')
            OR context_values ->> '$.userAgentData.mobile' = 'true'
        THEN 'mobile' ELSE 'web' END AS channel,
    context_values ->> '$.sessionId' AS session_id,
    given ->> '$.order_id' AS order_id,
    concat_ws('-', messageId, number) AS event_id,
    coalesce(product ->> '$.product_id', product ->> '$.sku', given ->> '$.product_id')
        AS product_id,
    coalesce(product ->> '$.quantity', given ->> '$.quantity') AS quantity,
    -- After discounts, without taxes and shipping: a discount of the whole order (its revenue is
    -- less than its products) is spread over the products. Where no product has a price, the first
    -- one has the revenue of the order. What cannot be computed stays text, and its row goes into
    -- quarantine.
    CASE
        WHEN event NOT IN ('Order Completed', 'Order Refunded') THEN NULL
        WHEN TRY_CAST(order_revenue AS DECIMAL(18, 4)) < order_total THEN CAST(round(
            line_total * TRY_CAST(order_revenue AS DECIMAL(18, 4)) / order_total, 4) AS VARCHAR)
        WHEN product ->> '$.price' IS NOT NULL THEN coalesce(
            CAST(line_total AS VARCHAR),
            concat(product ->> '$.quantity', ' of ', product ->> '$.price'))
        WHEN order_total IS NULL AND (number IS NULL OR number = 1) THEN order_revenue
    END AS amount,
    _file,
    _line
FROM orders

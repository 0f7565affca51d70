-- Shopify's order export (Orders, Export, "CSV for Excel" or "Plain CSV file").
-- Columns: https://help.shopify.com/manual/fulfillment/managing-orders/exporting-orders
-- A row is a line of an order; what belongs to the whole order stands in its first row only.
-- Files are read one by one: no row depends on two of them.
WITH lines AS (
    SELECT
        *,
        TRY_CAST("Lineitem quantity" AS DECIMAL(18, 4)) * TRY_CAST("Lineitem price" AS DECIMAL(18, 4))
            - coalesce(TRY_CAST("Lineitem discount" AS DECIMAL(18, 4)), 0) AS line_total,
        row_number() OVER (PARTITION BY _file, Name ORDER BY _line) AS line_number
    FROM source('*orders*')
),
orders AS (
    SELECT
        *,
        max("Email") OVER this_order AS order_email,
        max("Subtotal") OVER this_order AS order_subtotal,
        sum(line_total) OVER this_order AS order_total
    FROM lines
    WINDOW this_order AS (PARTITION BY _file, Name)
)

-- Every order is a purchase from the moment at which it was made, paid or not: what becomes of it
-- is not known then.
SELECT
    -- Guests have an address too, but no customer of Shopify. To keep addresses out of the state:
    -- md5(lower(order_email)).
    lower(order_email) AS customer_id,
    "Created at" AS event_timestamp,
    'purchase' AS event_type,
    'web' AS channel,
    Name AS order_id,
    CAST(line_number AS VARCHAR) AS event_id,
    coalesce("Lineitem sku", "Lineitem name") AS product_id,
    "Lineitem quantity" AS quantity,
    -- After discounts, without shipping; taxes as the shop's prices have them. A discount of the
    -- whole order (Subtotal is less than its lines) is spread over the lines. What cannot be
    -- computed stays text, and its row goes into quarantine.
    coalesce(
        CAST(CASE WHEN TRY_CAST(order_subtotal AS DECIMAL(18, 4)) < order_total
            THEN round(line_total * TRY_CAST(order_subtotal AS DECIMAL(18, 4)) / order_total, 4)
            ELSE line_total END AS VARCHAR),
        concat("Lineitem quantity", ' of ', "Lineitem price", ' less ', "Lineitem discount")
    ) AS amount,
    _file,
    _line
FROM orders

UNION ALL BY NAME

-- A cancelled or refunded order is a refund. The export says when an order was cancelled, not when
-- it was refunded: without that time a refund goes into quarantine as missing_timestamp, because
-- at the time of the order nobody knew of it.
SELECT
    lower(order_email) AS customer_id,
    "Cancelled at" AS event_timestamp,
    'refund' AS event_type,
    'web' AS channel,
    Name AS order_id,
    'refund' AS event_id,
    "Refunded Amount" AS amount,
    _file,
    _line
FROM orders
WHERE "Cancelled at" IS NOT NULL OR TRY_CAST("Refunded Amount" AS DECIMAL(18, 4)) <> 0

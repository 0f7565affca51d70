-- WooCommerce's orders as its REST API gives them (GET /wp-json/wc/v3/orders), one or many to a
-- file. Properties: https://woocommerce.github.io/woocommerce-rest-api-docs/#order-properties
-- Files are read one by one: no row depends on two of them.
WITH orders AS (
    SELECT
        *,
        -- Guests have an address too, but customer_id 0. To keep addresses out of the state:
        -- md5(lower(…)).
        lower(CAST(billing AS JSON) ->> '$.email') AS email,
        CAST(CAST(line_items AS JSON) AS JSON[]) AS items,
        CAST(CAST(refunds AS JSON) AS JSON[]) AS given_back
    FROM source('*orders*', 'refunds', 'line_items')
),
refunds AS (
    SELECT
        orders.*,
        concat('refund ', line.refund ->> '$.id') AS refund_id,
        line.refund ->> '$.total' AS refunded
    FROM orders, LATERAL (SELECT unnest(orders.given_back) AS refund) AS line
    WHERE status <> 'checkout-draft'

    UNION ALL BY NAME

    -- An order that was cancelled or failed is one too, whatever was paid.
    SELECT *, status AS refund_id, total AS refunded
    FROM orders
    WHERE status IN ('cancelled', 'failed')
)

-- Every order is a purchase from the moment at which it was made, paid or not: what becomes of it
-- is not known then. Baskets that were never sent (checkout-draft) are none.
SELECT
    email AS customer_id,
    date_created_gmt AS event_timestamp,
    'purchase' AS event_type,
    'web' AS channel,
    id AS order_id,
    line.item ->> '$.id' AS event_id,
    coalesce(line.item ->> '$.product_id', line.item ->> '$.name') AS product_id,
    line.item ->> '$.quantity' AS quantity,
    -- After discounts, without taxes and shipping.
    line.item ->> '$.total' AS amount,
    _file,
    _line
FROM orders LEFT JOIN LATERAL (SELECT unnest(orders.items) AS item) AS line ON true
WHERE status <> 'checkout-draft'

UNION ALL BY NAME

-- The time of a refund is not among the properties of an order. When the order was last changed is
-- not before it, so no feature knows of the refund too early.
SELECT
    email AS customer_id,
    date_modified_gmt AS event_timestamp,
    'refund' AS event_type,
    'web' AS channel,
    id AS order_id,
    refund_id AS event_id,
    refunded AS amount,
    _file,
    _line
FROM refunds

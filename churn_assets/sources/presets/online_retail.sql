-- The UCI Online Retail data as published: a workbook, CSV or Parquet, one row per invoice line.
-- Columns: https://archive.ics.uci.edu/dataset/352/online+retail (Chen, Sain and Guo 2012,
-- CC BY 4.0). There are no events but purchases and refunds.
-- Files are read one by one: no row depends on two of them.
SELECT
    CustomerID AS customer_id,
    InvoiceDate AS event_timestamp,
    -- An invoice whose number starts with C is a refund of its lines.
    CASE WHEN upper(CAST(InvoiceNo AS VARCHAR)) LIKE 'C%' THEN 'refund' ELSE 'purchase' END
        AS event_type,
    InvoiceNo AS order_id,
    StockCode AS product_id,
    Quantity AS quantity,
    -- What cannot be multiplied stays text, and its row goes into quarantine.
    CASE WHEN Quantity IS NOT NULL OR UnitPrice IS NOT NULL THEN coalesce(
        CAST(TRY_CAST(Quantity AS DECIMAL(18, 4)) * TRY_CAST(UnitPrice AS DECIMAL(18, 4)) AS VARCHAR),
        concat('Quantity ', Quantity, ' of UnitPrice ', UnitPrice)) END AS amount,
    _file,
    _line
FROM source('*online*retail*')

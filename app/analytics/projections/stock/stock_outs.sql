-- title: Stock-outs and lost revenue
-- answers: Which products were short, for how many orders, and what would the pieces have cost?
-- unit: orders; pieces; minor units of the currency
-- grain: one row a day, product and currency; no currency and no lost revenue for a product that was never reserved
-- window: tumbling, 1 day
-- time: day
-- chart: bar product_id requested
-- money: lost_revenue
-- keys: product_id, currency
-- sums: orders, requested, missing, lost_revenue
WITH prices AS (
    SELECT
        line.product_id AS product_id,
        line.unit_price.amount AS amount,
        line.unit_price.currency AS currency,
        r.occurred_at AS occurred_at,
        r.event_id AS event_id
    FROM inventory_reserved AS r
    CROSS JOIN unnest(r.lines) AS u(line)
),
compared AS (
    SELECT
        product_id,
        amount,
        currency,
        occurred_at,
        event_id,
        lag(amount) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS former_amount,
        lag(currency) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS former_currency
    FROM prices
),
-- One row a price: from the order that had it first to the one that had the next. The first price holds before it, too.
periods AS (
    SELECT
        product_id,
        amount,
        currency,
        CASE WHEN former_amount IS NULL THEN NULL ELSE occurred_at END AS since,
        lead(occurred_at) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS until
    FROM compared
    WHERE former_amount IS NULL OR former_amount <> amount OR former_currency <> currency
),
shortages AS (
    SELECT
        s.occurred_at AS occurred_at,
        shortage.product_id AS product_id,
        shortage.requested AS requested,
        shortage.available AS available
    FROM inventory_rejected AS s
    CROSS JOIN unnest(s.shortages) AS u(shortage)
    WHERE s.reason = 'insufficient_stock'
)
SELECT
    date_trunc('day', s.occurred_at) AS day,
    s.product_id AS product_id,
    p.currency AS currency,
    count(*) AS orders,
    CAST(sum(s.requested) AS BIGINT) AS requested,
    CAST(sum(s.requested - s.available) AS BIGINT) AS missing,
    sum(s.requested * CAST(p.amount AS DECIMAL(38, 0))) AS lost_revenue
FROM shortages AS s
LEFT JOIN periods AS p ON p.product_id = s.product_id
    AND (p.since IS NULL OR s.occurred_at >= p.since)
    AND (p.until IS NULL OR s.occurred_at < p.until)
GROUP BY date_trunc('day', s.occurred_at), s.product_id, p.currency

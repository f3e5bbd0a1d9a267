-- title: Refund rate
-- answers: How much of what was paid on a day has been refunded since, at once or in parts?
-- unit: minor units of the currency; rate is refunded / captured
-- grain: one row a day of payment and currency
-- window: tumbling, 1 day
-- time: day
-- chart: line day rate currency
-- money: captured, refunded
-- keys: currency
-- sums: payments, refunded_payments, captured, refunded
-- ratios: rate = refunded / captured
WITH refunds AS (
    SELECT order_id, sum(amount) AS refunded
    FROM (
        SELECT order_id, amount_amount AS amount FROM payments_refunded
        UNION ALL
        SELECT order_id, -amount_amount AS amount FROM payments_refund_failed WHERE has_returned
    ) AS entries
    GROUP BY order_id
)
SELECT
    date_trunc('day', p.occurred_at) AS day,
    p.amount_currency AS currency,
    count(*) AS payments,
    count(*) FILTER (WHERE r.refunded > 0) AS refunded_payments,
    sum(p.amount_amount) AS captured,
    sum(coalesce(r.refunded, 0)) AS refunded,
    CAST(sum(coalesce(r.refunded, 0)) AS DOUBLE PRECISION) / CAST(nullif(sum(p.amount_amount), 0) AS DOUBLE PRECISION) AS rate
FROM payments_captured AS p
LEFT JOIN refunds AS r ON r.order_id = p.order_id
GROUP BY date_trunc('day', p.occurred_at), p.amount_currency

-- title: Revenue per minute
-- answers: How much was sold in each minute, how much of earlier sales was refunded, and what is left?
-- unit: minor units of the currency
-- grain: one row a minute and currency; a refund counts where it happened
-- window: tumbling, 1 minute
-- time: minute
-- longest: 6h
-- chart: line minute net currency
-- money: revenue, refunded, net
SELECT
    minute,
    currency,
    CAST(sum(orders) AS BIGINT) AS orders,
    sum(revenue) AS revenue,
    sum(refunded) AS refunded,
    sum(revenue) - sum(refunded) AS net
FROM (
    SELECT
        date_trunc('minute', occurred_at) AS minute,
        total_currency AS currency,
        1 AS orders,
        total_amount AS revenue,
        0 AS refunded
    FROM orders_confirmed
    UNION ALL
    -- The payment of an order that was never confirmed is no revenue, and neither is its refund.
    SELECT
        date_trunc('minute', r.occurred_at) AS minute,
        r.amount_currency AS currency,
        0 AS orders,
        0 AS revenue,
        r.amount_amount AS refunded
    FROM payments_refunded AS r
    JOIN orders_confirmed AS o ON o.order_id = r.order_id
    UNION ALL
    -- A refund that failed after it had been reported has come back.
    SELECT
        date_trunc('minute', f.occurred_at) AS minute,
        f.amount_currency AS currency,
        0 AS orders,
        0 AS revenue,
        -f.amount_amount AS refunded
    FROM payments_refund_failed AS f
    JOIN orders_confirmed AS o ON o.order_id = f.order_id
    WHERE f.has_returned
) AS entries
GROUP BY minute, currency

-- title: Time in each state
-- answers: How long does an order stay in each state, and how long does it take from placing to confirmation?
-- unit: seconds
-- grain: one row a day and state, of the orders that left the state on that day
-- window: tumbling, 1 day
-- time: day
-- chart: line day p95_seconds state
WITH spans AS (
    SELECT 'processing' AS state, c.occurred_at AS entered_at, least(r.occurred_at, x.occurred_at) AS left_at
    FROM orders_created AS c
    LEFT JOIN inventory_reserved AS r ON r.order_id = c.order_id
    LEFT JOIN orders_cancelled AS x ON x.order_id = c.order_id
    UNION ALL
    SELECT 'reserved' AS state, r.occurred_at AS entered_at, coalesce(k.occurred_at, x.occurred_at) AS left_at
    FROM inventory_reserved AS r
    LEFT JOIN orders_confirmed AS k ON k.order_id = r.order_id
    LEFT JOIN orders_cancelled AS x ON x.order_id = r.order_id
    -- An order that was cancelled before inventory reserved its stock was never in this state.
    WHERE k.order_id IS NOT NULL OR x.order_id IS NULL OR x.occurred_at >= r.occurred_at
    UNION ALL
    SELECT 'confirmed, then cancelled' AS state, k.occurred_at AS entered_at, x.occurred_at AS left_at
    FROM orders_confirmed AS k
    JOIN orders_cancelled AS x ON x.order_id = k.order_id
    UNION ALL
    SELECT 'placed to confirmed' AS state, c.occurred_at AS entered_at, k.occurred_at AS left_at
    FROM orders_created AS c
    JOIN orders_confirmed AS k ON k.order_id = c.order_id
),
measured AS (
    -- Never negative: the clocks of two machines may differ.
    SELECT
        date_trunc('day', left_at) AS day,
        state,
        greatest(CAST(extract(epoch FROM left_at - entered_at) AS DOUBLE PRECISION), 0) AS seconds
    FROM spans
    WHERE left_at IS NOT NULL
)
SELECT
    day,
    state,
    count(*) AS orders,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50_seconds,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS p95_seconds,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99_seconds
FROM measured
GROUP BY day, state

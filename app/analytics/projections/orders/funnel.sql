-- title: Funnel
-- answers: How many of the placed orders reached each step, and how many were not cancelled afterwards?
-- unit: orders
-- grain: one row a day of placing and step
-- window: tumbling, 1 day
-- time: day
-- chart: bar stage orders
-- keys: step, stage
-- order: step
-- sums: orders
WITH days AS (
    SELECT
        date_trunc('day', c.occurred_at) AS day,
        count(*) AS placed,
        count(r.order_id) AS reserved,
        count(p.order_id) AS paid,
        count(k.order_id) AS confirmed,
        count(k.order_id) FILTER (WHERE x.order_id IS NULL) AS kept
    FROM orders_created AS c
    LEFT JOIN inventory_reserved AS r ON r.order_id = c.order_id
    LEFT JOIN payments_captured AS p ON p.order_id = c.order_id
    LEFT JOIN orders_confirmed AS k ON k.order_id = c.order_id
    LEFT JOIN orders_cancelled AS x ON x.order_id = c.order_id
    GROUP BY date_trunc('day', c.occurred_at)
)
SELECT day, 1 AS step, 'placed' AS stage, placed AS orders FROM days
UNION ALL
SELECT day, 2 AS step, 'reserved' AS stage, reserved AS orders FROM days
UNION ALL
SELECT day, 3 AS step, 'paid' AS stage, paid AS orders FROM days
UNION ALL
SELECT day, 4 AS step, 'confirmed' AS stage, confirmed AS orders FROM days
UNION ALL
SELECT day, 5 AS step, 'kept' AS stage, kept AS orders FROM days

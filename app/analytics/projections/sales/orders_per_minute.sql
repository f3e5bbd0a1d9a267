-- title: Orders per minute
-- answers: How many orders were placed, confirmed and cancelled in each minute?
-- unit: orders
-- grain: one row a minute in which something happened; an order counts where each event happened
-- window: tumbling, 1 minute
-- time: minute
-- longest: 6h
-- chart: line minute placed,confirmed,cancelled
SELECT
    minute,
    CAST(sum(placed) AS BIGINT) AS placed,
    CAST(sum(confirmed) AS BIGINT) AS confirmed,
    CAST(sum(cancelled) AS BIGINT) AS cancelled
FROM (
    SELECT date_trunc('minute', occurred_at) AS minute, 1 AS placed, 0 AS confirmed, 0 AS cancelled FROM orders_created
    UNION ALL
    SELECT date_trunc('minute', occurred_at) AS minute, 0 AS placed, 1 AS confirmed, 0 AS cancelled FROM orders_confirmed
    UNION ALL
    SELECT date_trunc('minute', occurred_at) AS minute, 0 AS placed, 0 AS confirmed, 1 AS cancelled FROM orders_cancelled
) AS entries
GROUP BY minute

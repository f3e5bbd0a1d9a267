-- title: Orders per hour
-- answers: How many orders were placed, confirmed and cancelled in each hour?
-- unit: orders
-- grain: one row an hour in which something happened; an order counts where each event happened
-- window: tumbling, 1 hour
-- time: hour
-- chart: line hour placed,confirmed,cancelled
SELECT
    date_trunc('hour', minute) AS hour,
    CAST(sum(placed) AS BIGINT) AS placed,
    CAST(sum(confirmed) AS BIGINT) AS confirmed,
    CAST(sum(cancelled) AS BIGINT) AS cancelled
FROM orders_per_minute
GROUP BY date_trunc('hour', minute)

-- title: Orders per day
-- answers: How many orders were placed, confirmed and cancelled in each day?
-- unit: orders
-- grain: one row a day in which something happened; an order counts where each event happened
-- window: tumbling, 1 day
-- time: day
-- chart: line day placed,confirmed,cancelled
SELECT
    date_trunc('day', minute) AS day,
    CAST(sum(placed) AS BIGINT) AS placed,
    CAST(sum(confirmed) AS BIGINT) AS confirmed,
    CAST(sum(cancelled) AS BIGINT) AS cancelled
FROM orders_per_minute
GROUP BY date_trunc('day', minute)

-- title: Cancellations by reason
-- answers: Why were orders cancelled, and how many of them had been confirmed before?
-- unit: orders
-- grain: one row a day of cancellation and reason
-- window: tumbling, 1 day
-- time: day
-- chart: bar reason orders
-- keys: reason
-- sums: orders, after_confirmation
SELECT
    date_trunc('day', x.occurred_at) AS day,
    x.reason AS reason,
    count(*) AS orders,
    count(k.order_id) AS after_confirmation
FROM orders_cancelled AS x
LEFT JOIN orders_confirmed AS k ON k.order_id = x.order_id
GROUP BY date_trunc('day', x.occurred_at), x.reason

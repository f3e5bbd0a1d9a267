-- title: Customer sessions
-- answers: How many orders does a customer place in one session, and how often more than one?
-- unit: sessions; orders
-- grain: one row a day on which sessions began
-- window: session, ends after 30 minutes without an order of the customer
-- time: day
-- chart: line day sessions,with_several
-- sums: sessions, orders, with_several
-- ratios: orders_per_session = orders / sessions
WITH marked AS (
    SELECT
        customer_id,
        event_id,
        occurred_at,
        lag(occurred_at) OVER (PARTITION BY customer_id ORDER BY occurred_at, event_id) AS former_at
    FROM orders_created
),
numbered AS (
    SELECT
        customer_id,
        occurred_at,
        sum(CASE WHEN former_at IS NULL OR occurred_at - former_at > INTERVAL '30 minutes' THEN 1 ELSE 0 END)
            OVER (PARTITION BY customer_id ORDER BY occurred_at, event_id ROWS UNBOUNDED PRECEDING) AS session
    FROM marked
),
sessions AS (
    SELECT customer_id, session, min(occurred_at) AS began_at, count(*) AS orders FROM numbered GROUP BY customer_id, session
)
SELECT
    date_trunc('day', began_at) AS day,
    count(*) AS sessions,
    CAST(sum(orders) AS BIGINT) AS orders,
    count(*) FILTER (WHERE orders > 1) AS with_several,
    CAST(sum(orders) AS DOUBLE PRECISION) / count(*) AS orders_per_session
FROM sessions
GROUP BY date_trunc('day', began_at)

-- title: Revenue per day
-- answers: How much was sold in each day, how much of earlier sales was refunded, and what is left?
-- unit: minor units of the currency
-- grain: one row a day and currency; a refund counts where it happened
-- window: tumbling, 1 day
-- time: day
-- chart: line day net currency
-- money: revenue, refunded, net
-- keys: currency
-- sums: orders, revenue, refunded, net
SELECT
    date_trunc('day', minute) AS day,
    currency,
    CAST(sum(orders) AS BIGINT) AS orders,
    sum(revenue) AS revenue,
    sum(refunded) AS refunded,
    sum(net) AS net
FROM revenue_per_minute
GROUP BY date_trunc('day', minute), currency

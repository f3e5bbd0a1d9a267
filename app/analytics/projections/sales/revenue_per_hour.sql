-- title: Revenue per hour
-- answers: How much was sold in each hour, how much of earlier sales was refunded, and what is left?
-- unit: minor units of the currency
-- grain: one row an hour and currency; a refund counts where it happened
-- window: tumbling, 1 hour
-- time: hour
-- chart: line hour net currency
-- money: revenue, refunded, net
-- keys: currency
-- sums: orders, revenue, refunded, net
SELECT
    date_trunc('hour', minute) AS hour,
    currency,
    CAST(sum(orders) AS BIGINT) AS orders,
    sum(revenue) AS revenue,
    sum(refunded) AS refunded,
    sum(net) AS net
FROM revenue_per_minute
GROUP BY date_trunc('hour', minute), currency

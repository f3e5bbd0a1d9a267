-- title: Revenue of the last 60 minutes
-- answers: How much was sold within 60 minutes, seen from each minute?
-- unit: minor units of the currency
-- grain: one row a minute and currency in which something happened
-- window: sliding, 60 minutes, one step a minute
-- time: minute
-- longest: 24h
-- chart: line minute net currency
-- money: net
SELECT
    minute,
    currency,
    CAST(
        sum(orders) OVER (
            PARTITION BY currency ORDER BY minute RANGE BETWEEN INTERVAL '59 minutes' PRECEDING AND CURRENT ROW
        ) AS BIGINT
    ) AS orders,
    sum(net) OVER (
        PARTITION BY currency ORDER BY minute RANGE BETWEEN INTERVAL '59 minutes' PRECEDING AND CURRENT ROW
    ) AS net
FROM revenue_per_minute

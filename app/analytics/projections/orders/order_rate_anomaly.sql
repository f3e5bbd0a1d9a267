-- title: Anomaly of the order rate
-- answers: In which hours were far more or fewer orders placed than in the same hour of the former weeks?
-- unit: orders; z is in standard deviations
-- grain: one row an hour, hours without orders included, from the first order to the hour before the newest order's
-- window: tumbling, 1 hour, compared with the same hour of up to 8 former weeks
-- time: hour
-- chart: line hour placed,expected
WITH counted AS (
    SELECT date_trunc('hour', occurred_at) AS hour, count(*) AS placed FROM orders_created GROUP BY date_trunc('hour', occurred_at)
),
hours AS (
    SELECT unnest(generate_series(min(hour), max(hour), INTERVAL '1 hour')) AS hour FROM counted
),
-- The hour of the newest order is not over yet.
filled AS (
    SELECT h.hour AS hour, coalesce(c.placed, 0) AS placed
    FROM hours AS h
    LEFT JOIN counted AS c ON c.hour = h.hour
    WHERE h.hour < (SELECT max(hour) FROM counted)
),
compared AS (
    SELECT
        hour,
        placed,
        count(*) OVER (
            PARTITION BY extract(dow FROM hour), extract(hour FROM hour) ORDER BY hour ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
        ) AS weeks,
        CAST(avg(placed) OVER (
            PARTITION BY extract(dow FROM hour), extract(hour FROM hour) ORDER BY hour ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
        ) AS DOUBLE PRECISION) AS expected,
        CAST(stddev_samp(placed) OVER (
            PARTITION BY extract(dow FROM hour), extract(hour FROM hour) ORDER BY hour ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
        ) AS DOUBLE PRECISION) AS deviation
    FROM filled
)
-- Counts of independent orders scatter by the square root of their mean, however equal three weeks were by chance.
SELECT
    hour,
    placed,
    weeks,
    expected,
    CASE
        WHEN weeks >= 3 THEN (placed - expected) / greatest(deviation, sqrt(greatest(expected, CAST(1 AS DOUBLE PRECISION))))
    END AS z
FROM compared

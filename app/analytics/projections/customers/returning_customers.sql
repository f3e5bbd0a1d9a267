-- title: Returning customers
-- answers: Of the customers whose first confirmed order was in one week, how many ordered again in each later week?
-- unit: customers; share is customers / size
-- grain: one row a week (from Monday) of the first order, and number of weeks later
-- window: tumbling, 1 week
-- time: cohort week
-- chart: line weeks_later share cohort
WITH active AS (
    SELECT DISTINCT customer_id, date_trunc('week', occurred_at) AS week FROM orders_confirmed
),
firsts AS (
    SELECT customer_id, min(week) AS cohort FROM active GROUP BY customer_id
),
sizes AS (
    SELECT cohort, count(*) AS size FROM firsts GROUP BY cohort
),
later AS (
    -- Rounded: a week in which the clocks change is an hour longer or shorter.
    SELECT
        f.cohort AS cohort,
        CAST(round(extract(epoch FROM a.week - f.cohort) / 604800) AS BIGINT) AS weeks_later,
        count(*) AS customers
    FROM active AS a
    JOIN firsts AS f ON f.customer_id = a.customer_id
    GROUP BY f.cohort, CAST(round(extract(epoch FROM a.week - f.cohort) / 604800) AS BIGINT)
)
SELECT
    l.cohort AS cohort,
    l.weeks_later AS weeks_later,
    l.customers AS customers,
    s.size AS size,
    CAST(l.customers AS DOUBLE PRECISION) / s.size AS share
FROM later AS l
JOIN sizes AS s ON s.cohort = l.cohort

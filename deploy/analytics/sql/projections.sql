-- Made by `python -m app analytics sql`: change the declarations, not this file.
-- Materialized views are brought up to date with each event; a day begins at midnight UTC.
SET timezone = 'UTC';

-- Orders per minute: How many orders were placed, confirmed and cancelled in each minute?
CREATE MATERIALIZED VIEW IF NOT EXISTS orders_per_minute AS
SELECT
  minute,
  CAST(SUM(placed) AS BIGINT) AS placed,
  CAST(SUM(confirmed) AS BIGINT) AS confirmed,
  CAST(SUM(cancelled) AS BIGINT) AS cancelled
FROM (
  SELECT
    DATE_TRUNC('MINUTE', occurred_at) AS minute,
    1 AS placed,
    0 AS confirmed,
    0 AS cancelled
  FROM orders_created
  UNION ALL
  SELECT
    DATE_TRUNC('MINUTE', occurred_at) AS minute,
    0 AS placed,
    1 AS confirmed,
    0 AS cancelled
  FROM orders_confirmed
  UNION ALL
  SELECT
    DATE_TRUNC('MINUTE', occurred_at) AS minute,
    0 AS placed,
    0 AS confirmed,
    1 AS cancelled
  FROM orders_cancelled
) AS entries
GROUP BY
  minute;

-- Revenue per minute: How much was sold in each minute, how much of earlier sales was refunded, and what is left?
CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_per_minute AS
SELECT
  minute,
  currency,
  CAST(SUM(orders) AS BIGINT) AS orders,
  SUM(revenue) AS revenue,
  SUM(refunded) AS refunded,
  SUM(revenue) - SUM(refunded) AS net
FROM (
  SELECT
    DATE_TRUNC('MINUTE', occurred_at) AS minute,
    total_currency AS currency,
    1 AS orders,
    total_amount AS revenue,
    0 AS refunded
  FROM orders_confirmed
  UNION ALL
  /* The payment of an order that was never confirmed is no revenue, and neither is its refund. */
  SELECT
    DATE_TRUNC('MINUTE', r.occurred_at) AS minute,
    r.amount_currency AS currency,
    0 AS orders,
    0 AS revenue,
    r.amount_amount AS refunded
  FROM payments_refunded AS r
  JOIN orders_confirmed AS o
    ON o.order_id = r.order_id
  UNION ALL
  /* A refund that failed after it had been reported has come back. */
  SELECT
    DATE_TRUNC('MINUTE', f.occurred_at) AS minute,
    f.amount_currency AS currency,
    0 AS orders,
    0 AS revenue,
    -f.amount_amount AS refunded
  FROM payments_refund_failed AS f
  JOIN orders_confirmed AS o
    ON o.order_id = f.order_id
  WHERE
    f.has_returned
) AS entries
GROUP BY
  minute,
  currency;

-- Top products: Which products were sold most, and for how much?
CREATE MATERIALIZED VIEW IF NOT EXISTS top_products AS
SELECT
  DATE_TRUNC('DAY', o.occurred_at) AS day,
  line ->> 'product_id' AS product_id,
  line -> 'unit_price' ->> 'currency' AS currency,
  COUNT(*) AS orders,
  CAST(SUM(CAST(line ->> 'quantity' AS BIGINT)) AS BIGINT) AS units,
  SUM(
    CAST(line ->> 'quantity' AS BIGINT) * CAST(CAST(line -> 'unit_price' ->> 'amount' AS BIGINT) AS DECIMAL)
  ) AS revenue
FROM orders_confirmed AS o
JOIN inventory_reserved AS r
  ON r.order_id = o.order_id
LEFT JOIN orders_cancelled AS x
  ON x.order_id = o.order_id
CROSS JOIN JSONB_ARRAY_ELEMENTS(r.lines) AS u(line)
WHERE
  x.order_id IS NULL
GROUP BY
  DATE_TRUNC('DAY', o.occurred_at),
  line ->> 'product_id',
  line -> 'unit_price' ->> 'currency';

-- Cancellations by reason: Why were orders cancelled, and how many of them had been confirmed before?
CREATE MATERIALIZED VIEW IF NOT EXISTS cancellations AS
SELECT
  DATE_TRUNC('DAY', x.occurred_at) AS day,
  x.reason AS reason,
  COUNT(*) AS orders,
  COUNT(k.order_id) AS after_confirmation
FROM orders_cancelled AS x
LEFT JOIN orders_confirmed AS k
  ON k.order_id = x.order_id
GROUP BY
  DATE_TRUNC('DAY', x.occurred_at),
  x.reason;

-- Funnel: How many of the placed orders reached each step, and how many were not cancelled afterwards?
CREATE MATERIALIZED VIEW IF NOT EXISTS funnel AS
WITH days AS (
  SELECT
    DATE_TRUNC('DAY', c.occurred_at) AS day,
    COUNT(*) AS placed,
    COUNT(r.order_id) AS reserved,
    COUNT(p.order_id) AS paid,
    COUNT(k.order_id) AS confirmed,
    COUNT(k.order_id) FILTER(WHERE
      x.order_id IS NULL) AS kept
  FROM orders_created AS c
  LEFT JOIN inventory_reserved AS r
    ON r.order_id = c.order_id
  LEFT JOIN payments_captured AS p
    ON p.order_id = c.order_id
  LEFT JOIN orders_confirmed AS k
    ON k.order_id = c.order_id
  LEFT JOIN orders_cancelled AS x
    ON x.order_id = c.order_id
  GROUP BY
    DATE_TRUNC('DAY', c.occurred_at)
)
SELECT
  day,
  1 AS step,
  'placed' AS stage,
  placed AS orders
FROM days
UNION ALL
SELECT
  day,
  2 AS step,
  'reserved' AS stage,
  reserved AS orders
FROM days
UNION ALL
SELECT
  day,
  3 AS step,
  'paid' AS stage,
  paid AS orders
FROM days
UNION ALL
SELECT
  day,
  4 AS step,
  'confirmed' AS stage,
  confirmed AS orders
FROM days
UNION ALL
SELECT
  day,
  5 AS step,
  'kept' AS stage,
  kept AS orders
FROM days;

-- Anomaly of the order rate: In which hours were far more or fewer orders placed than in the same hour of the former weeks?
CREATE MATERIALIZED VIEW IF NOT EXISTS order_rate_anomaly AS
WITH counted AS (
  SELECT
    DATE_TRUNC('HOUR', occurred_at) AS hour,
    COUNT(*) AS placed
  FROM orders_created
  GROUP BY
    DATE_TRUNC('HOUR', occurred_at)
), hours AS (
  SELECT
    GENERATE_SERIES(MIN(hour), MAX(hour), INTERVAL '1 HOUR') AS hour
  FROM counted
), filled /* The hour of the newest order is not over yet. */ AS (
  SELECT
    h.hour AS hour,
    COALESCE(c.placed, 0) AS placed
  FROM hours AS h
  LEFT JOIN counted AS c
    ON c.hour = h.hour
  WHERE
    h.hour < (
      SELECT
        MAX(hour)
      FROM counted
    )
), compared AS (
  SELECT
    hour,
    placed,
    COUNT(*) OVER (
      PARTITION BY EXTRACT(DOW FROM hour), EXTRACT(HOUR FROM hour)
      ORDER BY hour
      ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
    ) AS weeks,
    CAST(AVG(placed) OVER (
      PARTITION BY EXTRACT(DOW FROM hour), EXTRACT(HOUR FROM hour)
      ORDER BY hour
      ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
    ) AS DOUBLE PRECISION) AS expected,
    CAST(STDDEV_SAMP(placed) OVER (
      PARTITION BY EXTRACT(DOW FROM hour), EXTRACT(HOUR FROM hour)
      ORDER BY hour
      ROWS BETWEEN 8 PRECEDING AND 1 PRECEDING
    ) AS DOUBLE PRECISION) AS deviation
  FROM filled
)
/* Counts of independent orders scatter by the square root of their mean, however equal three weeks were by chance. */
SELECT
  hour,
  placed,
  weeks,
  expected,
  CASE
    WHEN weeks >= 3
    THEN CAST((
      placed - expected
    ) AS DOUBLE PRECISION) / GREATEST(deviation, SQRT(GREATEST(expected, CAST(1 AS DOUBLE PRECISION))))
  END AS z
FROM compared;

-- Time in each state: How long does an order stay in each state, and how long does it take from placing to confirmation?
CREATE MATERIALIZED VIEW IF NOT EXISTS time_in_state AS
WITH spans AS (
  SELECT
    'processing' AS state,
    c.occurred_at AS entered_at,
    LEAST(r.occurred_at, x.occurred_at) AS left_at
  FROM orders_created AS c
  LEFT JOIN inventory_reserved AS r
    ON r.order_id = c.order_id
  LEFT JOIN orders_cancelled AS x
    ON x.order_id = c.order_id
  UNION ALL
  SELECT
    'reserved' AS state,
    r.occurred_at AS entered_at,
    COALESCE(k.occurred_at, x.occurred_at) AS left_at
  FROM inventory_reserved AS r
  LEFT JOIN orders_confirmed AS k
    ON k.order_id = r.order_id
  LEFT JOIN orders_cancelled AS x
    ON x.order_id = r.order_id
  /* An order that was cancelled before inventory reserved its stock was never in this state. */
  WHERE
    NOT k.order_id IS NULL OR x.order_id IS NULL OR x.occurred_at >= r.occurred_at
  UNION ALL
  SELECT
    'confirmed, then cancelled' AS state,
    k.occurred_at AS entered_at,
    x.occurred_at AS left_at
  FROM orders_confirmed AS k
  JOIN orders_cancelled AS x
    ON x.order_id = k.order_id
  UNION ALL
  SELECT
    'placed to confirmed' AS state,
    c.occurred_at AS entered_at,
    k.occurred_at AS left_at
  FROM orders_created AS c
  JOIN orders_confirmed AS k
    ON k.order_id = c.order_id
), measured AS (
  /* Never negative: the clocks of two machines may differ. */
  SELECT
    DATE_TRUNC('DAY', left_at) AS day,
    state,
    GREATEST(CAST(EXTRACT(EPOCH FROM left_at - entered_at) AS DOUBLE PRECISION), 0) AS seconds
  FROM spans
  WHERE
    NOT left_at IS NULL
)
SELECT
  day,
  state,
  COUNT(*) AS orders,
  PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY
    seconds) AS p50_seconds,
  PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY
    seconds) AS p95_seconds,
  PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY
    seconds) AS p99_seconds
FROM measured
GROUP BY
  day,
  state;

-- Customer sessions: How many orders does a customer place in one session, and how often more than one?
CREATE MATERIALIZED VIEW IF NOT EXISTS customer_sessions AS
WITH marked AS (
  SELECT
    customer_id,
    event_id,
    occurred_at,
    LAG(occurred_at) OVER (PARTITION BY customer_id ORDER BY occurred_at, event_id) AS former_at
  FROM orders_created
), numbered AS (
  SELECT
    customer_id,
    occurred_at,
    SUM(
      CASE
        WHEN former_at IS NULL OR occurred_at - former_at > INTERVAL '30 MINUTES'
        THEN 1
        ELSE 0
      END
    ) OVER (
      PARTITION BY customer_id
      ORDER BY occurred_at, event_id
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS session
  FROM marked
), sessions AS (
  SELECT
    customer_id,
    session,
    MIN(occurred_at) AS began_at,
    COUNT(*) AS orders
  FROM numbered
  GROUP BY
    customer_id,
    session
)
SELECT
  DATE_TRUNC('DAY', began_at) AS day,
  COUNT(*) AS sessions,
  CAST(SUM(orders) AS BIGINT) AS orders,
  COUNT(*) FILTER(WHERE
    orders > 1) AS with_several,
  CAST(SUM(orders) AS DOUBLE PRECISION) / COUNT(*) AS orders_per_session
FROM sessions
GROUP BY
  DATE_TRUNC('DAY', began_at);

-- Returning customers: Of the customers whose first confirmed order was in one week, how many ordered again in each later week?
CREATE MATERIALIZED VIEW IF NOT EXISTS returning_customers AS
WITH active AS (
  SELECT DISTINCT
    customer_id,
    DATE_TRUNC('WEEK', occurred_at) AS week
  FROM orders_confirmed
), firsts AS (
  SELECT
    customer_id,
    MIN(week) AS cohort
  FROM active
  GROUP BY
    customer_id
), sizes AS (
  SELECT
    cohort,
    COUNT(*) AS size
  FROM firsts
  GROUP BY
    cohort
), later AS (
  /* Rounded: a week in which the clocks change is an hour longer or shorter. */
  SELECT
    f.cohort AS cohort,
    CAST(ROUND(CAST(EXTRACT(EPOCH FROM a.week - f.cohort) AS DOUBLE PRECISION) / 604800) AS BIGINT) AS weeks_later,
    COUNT(*) AS customers
  FROM active AS a
  JOIN firsts AS f
    ON f.customer_id = a.customer_id
  GROUP BY
    f.cohort,
    CAST(ROUND(CAST(EXTRACT(EPOCH FROM a.week - f.cohort) AS DOUBLE PRECISION) / 604800) AS BIGINT)
)
SELECT
  l.cohort AS cohort,
  l.weeks_later AS weeks_later,
  l.customers AS customers,
  s.size AS size,
  CAST(l.customers AS DOUBLE PRECISION) / s.size AS share
FROM later AS l
JOIN sizes AS s
  ON s.cohort = l.cohort;

-- Payment declines by reason: Why were payments declined, and how much was not paid?
CREATE MATERIALIZED VIEW IF NOT EXISTS payment_declines AS
SELECT
  DATE_TRUNC('DAY', occurred_at) AS day,
  reason,
  amount_currency AS currency,
  COUNT(*) AS payments,
  SUM(amount_amount) AS amount
FROM payments_declined
GROUP BY
  DATE_TRUNC('DAY', occurred_at),
  reason,
  amount_currency;

-- Refund rate: How much of what was paid on a day has been refunded since, at once or in parts?
CREATE MATERIALIZED VIEW IF NOT EXISTS refund_rate AS
WITH refunds AS (
  SELECT
    order_id,
    SUM(amount) AS refunded
  FROM (
    SELECT
      order_id,
      amount_amount AS amount
    FROM payments_refunded
    UNION ALL
    SELECT
      order_id,
      -amount_amount AS amount
    FROM payments_refund_failed
    WHERE
      has_returned
  ) AS entries
  GROUP BY
    order_id
)
SELECT
  DATE_TRUNC('DAY', p.occurred_at) AS day,
  p.amount_currency AS currency,
  COUNT(*) AS payments,
  COUNT(*) FILTER(WHERE
    r.refunded > 0) AS refunded_payments,
  SUM(p.amount_amount) AS captured,
  SUM(COALESCE(r.refunded, 0)) AS refunded,
  CAST(SUM(COALESCE(r.refunded, 0)) AS DOUBLE PRECISION) / CAST(NULLIF(SUM(p.amount_amount), 0) AS DOUBLE PRECISION) AS rate
FROM payments_captured AS p
LEFT JOIN refunds AS r
  ON r.order_id = p.order_id
GROUP BY
  DATE_TRUNC('DAY', p.occurred_at),
  p.amount_currency;

-- Stock-outs and lost revenue: Which products were short, for how many orders, and what would the pieces have cost?
CREATE MATERIALIZED VIEW IF NOT EXISTS stock_outs AS
WITH prices AS (
  SELECT
    line ->> 'product_id' AS product_id,
    CAST(line -> 'unit_price' ->> 'amount' AS BIGINT) AS amount,
    line -> 'unit_price' ->> 'currency' AS currency,
    r.occurred_at AS occurred_at,
    r.event_id AS event_id
  FROM inventory_reserved AS r
  CROSS JOIN JSONB_ARRAY_ELEMENTS(r.lines) AS u(line)
), compared AS (
  SELECT
    product_id,
    amount,
    currency,
    occurred_at,
    event_id,
    LAG(amount) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS former_amount,
    LAG(currency) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS former_currency
  FROM prices
), periods /* One row a price: from the order that had it first to the one that had the next. The first price holds before it, too. */ AS (
  SELECT
    product_id,
    amount,
    currency,
    CASE WHEN former_amount IS NULL THEN NULL ELSE occurred_at END AS since,
    LEAD(occurred_at) OVER (PARTITION BY product_id ORDER BY occurred_at, event_id) AS until
  FROM compared
  WHERE
    former_amount IS NULL OR former_amount <> amount OR former_currency <> currency
), shortages AS (
  SELECT
    s.occurred_at AS occurred_at,
    shortage ->> 'product_id' AS product_id,
    CAST(shortage ->> 'requested' AS BIGINT) AS requested,
    CAST(shortage ->> 'available' AS BIGINT) AS available
  FROM inventory_rejected AS s
  CROSS JOIN JSONB_ARRAY_ELEMENTS(s.shortages) AS u(shortage)
  WHERE
    s.reason = 'insufficient_stock'
)
SELECT
  DATE_TRUNC('DAY', s.occurred_at) AS day,
  s.product_id AS product_id,
  p.currency AS currency,
  COUNT(*) AS orders,
  CAST(SUM(s.requested) AS BIGINT) AS requested,
  CAST(SUM(s.requested - s.available) AS BIGINT) AS missing,
  SUM(s.requested * CAST(p.amount AS DECIMAL)) AS lost_revenue
FROM shortages AS s
LEFT JOIN periods AS p
  ON p.product_id = s.product_id
  AND (
    p.since IS NULL OR s.occurred_at >= p.since
  )
  AND (
    p.until IS NULL OR s.occurred_at < p.until
  )
GROUP BY
  DATE_TRUNC('DAY', s.occurred_at),
  s.product_id,
  p.currency;

-- Orders per day: How many orders were placed, confirmed and cancelled in each day?
CREATE MATERIALIZED VIEW IF NOT EXISTS orders_per_day AS
SELECT
  DATE_TRUNC('DAY', minute) AS day,
  CAST(SUM(placed) AS BIGINT) AS placed,
  CAST(SUM(confirmed) AS BIGINT) AS confirmed,
  CAST(SUM(cancelled) AS BIGINT) AS cancelled
FROM orders_per_minute
GROUP BY
  DATE_TRUNC('DAY', minute);

-- Orders per hour: How many orders were placed, confirmed and cancelled in each hour?
CREATE MATERIALIZED VIEW IF NOT EXISTS orders_per_hour AS
SELECT
  DATE_TRUNC('HOUR', minute) AS hour,
  CAST(SUM(placed) AS BIGINT) AS placed,
  CAST(SUM(confirmed) AS BIGINT) AS confirmed,
  CAST(SUM(cancelled) AS BIGINT) AS cancelled
FROM orders_per_minute
GROUP BY
  DATE_TRUNC('HOUR', minute);

-- Revenue of the last 60 minutes: How much was sold within 60 minutes, seen from each minute?
CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_last_hour AS
SELECT
  minute,
  currency,
  CAST(SUM(orders) OVER (
    PARTITION BY currency
    ORDER BY minute
    RANGE BETWEEN INTERVAL '59 MINUTES' PRECEDING AND CURRENT ROW
  ) AS BIGINT) AS orders,
  SUM(net) OVER (
    PARTITION BY currency
    ORDER BY minute
    RANGE BETWEEN INTERVAL '59 MINUTES' PRECEDING AND CURRENT ROW
  ) AS net
FROM revenue_per_minute;

-- Revenue per day: How much was sold in each day, how much of earlier sales was refunded, and what is left?
CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_per_day AS
SELECT
  DATE_TRUNC('DAY', minute) AS day,
  currency,
  CAST(SUM(orders) AS BIGINT) AS orders,
  SUM(revenue) AS revenue,
  SUM(refunded) AS refunded,
  SUM(net) AS net
FROM revenue_per_minute
GROUP BY
  DATE_TRUNC('DAY', minute),
  currency;

-- Revenue per hour: How much was sold in each hour, how much of earlier sales was refunded, and what is left?
CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_per_hour AS
SELECT
  DATE_TRUNC('HOUR', minute) AS hour,
  currency,
  CAST(SUM(orders) AS BIGINT) AS orders,
  SUM(revenue) AS revenue,
  SUM(refunded) AS refunded,
  SUM(net) AS net
FROM revenue_per_minute
GROUP BY
  DATE_TRUNC('HOUR', minute),
  currency;

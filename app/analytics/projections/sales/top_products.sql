-- title: Top products
-- answers: Which products were sold most, and for how much?
-- unit: pieces; minor units of the currency
-- grain: one row a day of confirmation, product and currency; without orders that were cancelled later
-- window: tumbling, 1 day
-- time: day
-- chart: bar product_id units
-- money: revenue
-- keys: product_id, currency
-- sums: orders, units, revenue
SELECT
    date_trunc('day', o.occurred_at) AS day,
    line.product_id AS product_id,
    line.unit_price.currency AS currency,
    count(*) AS orders,
    CAST(sum(line.quantity) AS BIGINT) AS units,
    sum(line.quantity * CAST(line.unit_price.amount AS DECIMAL(38, 0))) AS revenue
FROM orders_confirmed AS o
JOIN inventory_reserved AS r ON r.order_id = o.order_id
LEFT JOIN orders_cancelled AS x ON x.order_id = o.order_id
CROSS JOIN unnest(r.lines) AS u(line)
WHERE x.order_id IS NULL
GROUP BY date_trunc('day', o.occurred_at), line.product_id, line.unit_price.currency

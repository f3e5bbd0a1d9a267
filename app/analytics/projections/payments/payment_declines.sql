-- title: Payment declines by reason
-- answers: Why were payments declined, and how much was not paid?
-- unit: payments; minor units of the currency
-- grain: one row a day of the decline, reason and currency
-- window: tumbling, 1 day
-- time: day
-- chart: bar reason payments
-- money: amount
-- keys: reason, currency
-- sums: payments, amount
SELECT
    date_trunc('day', occurred_at) AS day,
    reason,
    amount_currency AS currency,
    count(*) AS payments,
    sum(amount_amount) AS amount
FROM payments_declined
GROUP BY date_trunc('day', occurred_at), reason, amount_currency

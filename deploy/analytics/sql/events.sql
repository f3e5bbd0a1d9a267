-- Made by `python -m app analytics sql`: change the declarations, not this file.
-- One table for each event, in its newest version; an event id is there once.
SET timezone = 'UTC';

CREATE MATERIALIZED VIEW IF NOT EXISTS inventory_rejected AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'inventory' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'reason' AS reason,
    CASE WHEN jsonb_typeof(data -> 'shortages') = 'array' THEN data -> 'shortages' END AS shortages
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM inventory_outbox
        WHERE name IS NULL AND subject IN ('inventory.rejected.v1', 'inventory.rejected.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('inventory.rejected.v1', 'inventory.rejected.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS inventory_released AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'inventory' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CASE WHEN jsonb_typeof(data -> 'lines') = 'array' THEN data -> 'lines' END AS lines
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM inventory_outbox
        WHERE name IS NULL AND subject IN ('inventory.released.v1', 'inventory.released.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('inventory.released.v1', 'inventory.released.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS inventory_reserved AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'inventory' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CASE WHEN jsonb_typeof(data -> 'lines') = 'array' THEN data -> 'lines' END AS lines,
    CAST(data -> 'total' ->> 'amount' AS BIGINT) AS total_amount,
    data -> 'total' ->> 'currency' AS total_currency,
    data ->> 'payment_method' AS payment_method,
    data ->> 'payment_customer' AS payment_customer,
    data -> 'shipping_address' ->> 'name' AS shipping_address_name,
    data -> 'shipping_address' ->> 'line1' AS shipping_address_line1,
    data -> 'shipping_address' ->> 'line2' AS shipping_address_line2,
    data -> 'shipping_address' ->> 'city' AS shipping_address_city,
    data -> 'shipping_address' ->> 'postal_code' AS shipping_address_postal_code,
    data -> 'shipping_address' ->> 'country' AS shipping_address_country
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM inventory_outbox
        WHERE name IS NULL AND subject IN ('inventory.reserved.v1', 'inventory.reserved.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('inventory.reserved.v1', 'inventory.reserved.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS orders_cancelled AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'orders' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'customer_id' AS customer_id,
    CASE WHEN jsonb_typeof(data -> 'items') = 'array' THEN data -> 'items' END AS items,
    data ->> 'reason' AS reason
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM orders_outbox
        WHERE name IS NULL AND subject IN ('orders.cancelled.v1', 'orders.cancelled.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('orders.cancelled.v1', 'orders.cancelled.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS orders_confirmed AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'orders' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'customer_id' AS customer_id,
    CASE WHEN jsonb_typeof(data -> 'items') = 'array' THEN data -> 'items' END AS items,
    CAST(data -> 'total' ->> 'amount' AS BIGINT) AS total_amount,
    data -> 'total' ->> 'currency' AS total_currency
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM orders_outbox
        WHERE name IS NULL AND subject IN ('orders.confirmed.v1', 'orders.confirmed.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('orders.confirmed.v1', 'orders.confirmed.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS orders_created AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'orders' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'customer_id' AS customer_id,
    CASE WHEN jsonb_typeof(data -> 'items') = 'array' THEN data -> 'items' END AS items,
    data ->> 'version' AS version,
    data -> 'shipping_address' ->> 'name' AS shipping_address_name,
    data -> 'shipping_address' ->> 'line1' AS shipping_address_line1,
    data -> 'shipping_address' ->> 'line2' AS shipping_address_line2,
    data -> 'shipping_address' ->> 'city' AS shipping_address_city,
    data -> 'shipping_address' ->> 'postal_code' AS shipping_address_postal_code,
    data -> 'shipping_address' ->> 'country' AS shipping_address_country,
    data ->> 'payment_method' AS payment_method,
    data ->> 'payment_customer' AS payment_customer
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM orders_outbox
        WHERE name IS NULL AND subject IN ('orders.created.v2', 'orders.created.v2.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('orders.created.v2', 'orders.created.v2.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS orders_refund_requested AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'orders' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'refund_id' AS refund_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reason' AS reason
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM orders_outbox
        WHERE name IS NULL AND subject IN ('orders.refund_requested.v1', 'orders.refund_requested.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('orders.refund_requested.v1', 'orders.refund_requested.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS orders_timed_out AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'orders' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM orders_outbox
        WHERE name IS NULL AND subject IN ('orders.timed_out.v1', 'orders.timed_out.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('orders.timed_out.v1', 'orders.timed_out.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_captured AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reference' AS reference
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.captured.v1', 'payments.captured.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.captured.v1', 'payments.captured.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_charge_requested AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    CAST(data ->> 'attempt' AS BIGINT) AS attempt,
    CAST(data ->> 'is_wanted' AS BOOLEAN) AS is_wanted,
    data ->> 'payment_method' AS payment_method,
    data ->> 'payment_customer' AS payment_customer,
    data -> 'shipping_address' ->> 'name' AS shipping_address_name,
    data -> 'shipping_address' ->> 'line1' AS shipping_address_line1,
    data -> 'shipping_address' ->> 'line2' AS shipping_address_line2,
    data -> 'shipping_address' ->> 'city' AS shipping_address_city,
    data -> 'shipping_address' ->> 'postal_code' AS shipping_address_postal_code,
    data -> 'shipping_address' ->> 'country' AS shipping_address_country,
    CAST(data ->> 'key_number' AS BIGINT) AS key_number
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.charge_requested.v1', 'payments.charge_requested.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.charge_requested.v1', 'payments.charge_requested.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_declined AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reason' AS reason
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.declined.v1', 'payments.declined.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.declined.v1', 'payments.declined.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_delayed AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.delayed.v1', 'payments.delayed.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.delayed.v1', 'payments.delayed.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_put_aside AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    data ->> 'reason' AS reason
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.put_aside.v1', 'payments.put_aside.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.put_aside.v1', 'payments.put_aside.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_refund_failed AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reason' AS reason,
    CAST(data ->> 'is_final' AS BOOLEAN) AS is_final,
    data ->> 'refund_id' AS refund_id,
    CAST(data ->> 'has_returned' AS BOOLEAN) AS has_returned
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.refund_failed.v1', 'payments.refund_failed.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.refund_failed.v1', 'payments.refund_failed.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_refund_requested AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reference' AS reference,
    CAST(data ->> 'attempt' AS BIGINT) AS attempt,
    CAST(data ->> 'key_number' AS BIGINT) AS key_number
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.refund_requested.v1', 'payments.refund_requested.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.refund_requested.v1', 'payments.refund_requested.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS payments_refunded AS
SELECT
    event_id,
    cause_id,
    correlation_id,
    entity_key,
    'payments' AS module,
    subject LIKE '%.express' AS is_express,
    CAST(NULL AS BIGINT) AS seq,
    occurred_at,
    data ->> 'order_id' AS order_id,
    CAST(data -> 'amount' ->> 'amount' AS BIGINT) AS amount_amount,
    data -> 'amount' ->> 'currency' AS amount_currency,
    data ->> 'reference' AS reference,
    CAST(data -> 'kept' ->> 'amount' AS BIGINT) AS kept_amount,
    data -> 'kept' ->> 'currency' AS kept_currency,
    data ->> 'refund_id' AS refund_id
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM payments_outbox
        WHERE name IS NULL AND subject IN ('payments.refunded.v1', 'payments.refunded.v1.express')
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ('payments.refunded.v1', 'payments.refunded.v1.express')
    ) AS copies
) AS numbered
WHERE copy_number = 1;

-- Events of which no row is in the newest version: the upcasts of the modules are Python, which does not run here.
CREATE MATERIALIZED VIEW IF NOT EXISTS unreadable_events AS
SELECT event_id, min(subject) AS subject, min(occurred_at) AS occurred_at
FROM (
    SELECT event_id, subject, occurred_at FROM inventory_outbox WHERE name IS NULL AND subject NOT LIKE 'inventory.replay.%'
    UNION ALL
    SELECT event_id, subject, occurred_at FROM orders_outbox WHERE name IS NULL AND subject NOT LIKE 'orders.replay.%'
    UNION ALL
    SELECT event_id, subject, occurred_at FROM payments_outbox WHERE name IS NULL AND subject NOT LIKE 'payments.replay.%'
    UNION ALL
    SELECT event_id, subject, occurred_at FROM archived_events
) AS copies
GROUP BY event_id
HAVING count(*) FILTER (WHERE subject IN ('inventory.rejected.v1', 'inventory.rejected.v1.express', 'inventory.released.v1', 'inventory.released.v1.express', 'inventory.reserved.v1', 'inventory.reserved.v1.express', 'orders.cancelled.v1', 'orders.cancelled.v1.express', 'orders.confirmed.v1', 'orders.confirmed.v1.express', 'orders.created.v2', 'orders.created.v2.express', 'orders.refund_requested.v1', 'orders.refund_requested.v1.express', 'orders.timed_out.v1', 'orders.timed_out.v1.express', 'payments.captured.v1', 'payments.captured.v1.express', 'payments.charge_requested.v1', 'payments.charge_requested.v1.express', 'payments.declined.v1', 'payments.declined.v1.express', 'payments.delayed.v1', 'payments.delayed.v1.express', 'payments.put_aside.v1', 'payments.put_aside.v1.express', 'payments.refund_failed.v1', 'payments.refund_failed.v1.express', 'payments.refund_requested.v1', 'payments.refund_requested.v1.express', 'payments.refunded.v1', 'payments.refunded.v1.express')) = 0;

-- Made by `python -m app analytics sql`: change the declarations, not this file. For psql, connected to RisingWave:
--   psql -h localhost -p 4566 -d dev -U root --set=password=... --file=sources.sql
-- The databases have the names of the modules, on one server; set host, port or <module>_database for others.
\if :{?host} \else \set host postgres \endif
\if :{?port} \else \set port 5432 \endif
\if :{?user} \else \set user analytics \endif
SET timezone = 'UTC';

-- Events from before the first connection, from the Parquet archive; an event that the outbox has, too, counts once.
CREATE TABLE IF NOT EXISTS archived_events (
    event_id VARCHAR PRIMARY KEY,
    cause_id VARCHAR,
    correlation_id VARCHAR,
    subject VARCHAR,
    key VARCHAR,
    occurred_at TIMESTAMPTZ,
    data VARCHAR
);

\if :{?inventory_database} \else \set inventory_database inventory \endif
CREATE SOURCE IF NOT EXISTS inventory_database WITH (
    connector = 'postgres-cdc',
    hostname = :'host',
    port = :'port',
    username = :'user',
    password = :'password',
    database.name = :'inventory_database',
    schema.name = 'public',
    slot.name = 'analytics_inventory',
    publication.name = 'analytics',
    publication.create.enable = 'false'
);
CREATE TABLE IF NOT EXISTS inventory_outbox (
    id VARCHAR,
    event_id VARCHAR,
    subject VARCHAR,
    key VARCHAR,
    body BYTEA,
    name VARCHAR,
    correlation_id VARCHAR,
    causation_id VARCHAR,
    occurred_at TIMESTAMPTZ,
    PRIMARY KEY (id)
) FROM inventory_database TABLE 'public.inventory_outbox';

\if :{?orders_database} \else \set orders_database orders \endif
CREATE SOURCE IF NOT EXISTS orders_database WITH (
    connector = 'postgres-cdc',
    hostname = :'host',
    port = :'port',
    username = :'user',
    password = :'password',
    database.name = :'orders_database',
    schema.name = 'public',
    slot.name = 'analytics_orders',
    publication.name = 'analytics',
    publication.create.enable = 'false'
);
CREATE TABLE IF NOT EXISTS orders_outbox (
    id VARCHAR,
    event_id VARCHAR,
    subject VARCHAR,
    key VARCHAR,
    body BYTEA,
    name VARCHAR,
    correlation_id VARCHAR,
    causation_id VARCHAR,
    occurred_at TIMESTAMPTZ,
    PRIMARY KEY (id)
) FROM orders_database TABLE 'public.orders_outbox';

\if :{?payments_database} \else \set payments_database payments \endif
CREATE SOURCE IF NOT EXISTS payments_database WITH (
    connector = 'postgres-cdc',
    hostname = :'host',
    port = :'port',
    username = :'user',
    password = :'password',
    database.name = :'payments_database',
    schema.name = 'public',
    slot.name = 'analytics_payments',
    publication.name = 'analytics',
    publication.create.enable = 'false'
);
CREATE TABLE IF NOT EXISTS payments_outbox (
    id VARCHAR,
    event_id VARCHAR,
    subject VARCHAR,
    key VARCHAR,
    body BYTEA,
    name VARCHAR,
    correlation_id VARCHAR,
    causation_id VARCHAR,
    occurred_at TIMESTAMPTZ,
    PRIMARY KEY (id)
) FROM payments_database TABLE 'public.payments_outbox';

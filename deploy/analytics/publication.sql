-- Publish what the outbox of one module gains, to the user `analytics`. For psql, as a superuser, in the database of the module:
--   psql --dbname orders --set=module=orders --set=password=... --file=publication.sql
-- Only inserts: the relay's mark that an event is sent, and the later deletion, are of no interest. It can be run again.
\set ON_ERROR_STOP on
\set outbox :module _outbox
BEGIN;
SELECT 'CREATE ROLE analytics LOGIN REPLICATION' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'analytics') \gexec
ALTER ROLE analytics PASSWORD :'password';
SELECT format('GRANT CONNECT ON DATABASE %I TO analytics', current_database()) \gexec
GRANT USAGE ON SCHEMA public TO analytics;
GRANT SELECT ON public.:"outbox" TO analytics;
SELECT 'CREATE PUBLICATION analytics WITH (publish = ''insert'')'
WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'analytics') \gexec
SELECT format('ALTER PUBLICATION analytics ADD TABLE public.%I', :'outbox') WHERE NOT EXISTS (
    SELECT FROM pg_publication_tables WHERE pubname = 'analytics' AND schemaname = 'public' AND tablename = :'outbox'
) \gexec
COMMIT;

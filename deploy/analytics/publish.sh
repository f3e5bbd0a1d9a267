#!/bin/sh
# Run publication.sql in the database of each module that sql/sources.sql reads. It can be run again.
set -eu
here=$(dirname "$0")
secrets=${SECRETS:-/run/secrets}
PGPASSWORD=$(cat "$secrets/postgres_password")
export PGPASSWORD PGUSER="${PGUSER:-postgres}" PGHOST="${PGHOST:-postgres}"
sed -n 's/^CREATE SOURCE IF NOT EXISTS \(.*\)_database WITH ($/\1/p' "$here/sql/sources.sql" | while read -r module; do
    psql --no-psqlrc --quiet --dbname "$module" --set=module="$module" --set=password="$(cat "$secrets/analytics_password")" \
        --file="$here/publication.sql"
done

#!/bin/sh
# Create sources, tables and materialized views in RisingWave, those that are not there yet.
set -eu
here=$(dirname "$0")
secrets=${SECRETS:-/run/secrets}
export PGHOST="${PGHOST:-risingwave}" PGPORT="${PGPORT:-4566}" PGUSER="${PGUSER:-root}" PGDATABASE="${PGDATABASE:-dev}"
for part in sources events projections; do
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=password="$(cat "$secrets/analytics_password")" --file="$here/sql/$part.sql"
done

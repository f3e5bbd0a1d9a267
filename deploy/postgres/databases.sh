#!/bin/sh
# Create one database and one owner for each module; other users cannot connect. The image runs this once, on an empty
# volume.
set -eu
for module in orders inventory payments; do
    psql --no-psqlrc --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set=module="$module" --set=password="$(cat "${SECRETS:-/run/secrets}/postgres_$module")" <<'SQL'
CREATE ROLE :"module" LOGIN PASSWORD :'password';
CREATE DATABASE :"module" OWNER :"module";
REVOKE CONNECT, TEMPORARY ON DATABASE :"module" FROM PUBLIC;
SQL
done

#!/bin/sh
# Create one database and one owner for each module; other users cannot connect. The image runs this once, on an empty
# volume. The modules are those that have a secret postgres_<module>; postgres_password is the superuser's.
set -eu
for secret in "${SECRETS:-/run/secrets}"/postgres_*; do
    module=${secret##*/postgres_}
    [ "$module" != password ] || continue
    psql --no-psqlrc --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
        --set=module="$module" --set=password="$(cat "$secret")" <<'SQL'
CREATE ROLE :"module" LOGIN PASSWORD :'password';
CREATE DATABASE :"module" OWNER :"module";
REVOKE CONNECT, TEMPORARY ON DATABASE :"module" FROM PUBLIC;
SQL
done

#!/bin/sh
# Make the secrets that deploy/compose.yaml and deploy/kubernetes ask for, in deploy/secrets (which git does not see).
# What is there already stays. The files can be read by everybody who gets into the folder, and that is you alone: the
# programs that read them run as users of their own.
set -eu
cd "$(dirname "$0")"
umask 022
mkdir -p secrets
chmod 0700 secrets

# A letter first: NATS would take a value that begins with a digit for a number.
dice() { printf 's%s' "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; }
keep() { [ -s "secrets/$1" ] || printf '%s' "$2" >"secrets/$1"; }

keep postgres_password "$(dice)"
keep grafana_password "$(dice)"
keep api_keys "operator:$(dice)"
keep nats_provisioner "$(dice)"
# The one list of modules.
modules=$(sed -n 's/^MODULES = (\(.*\))$/\1/p' ../modules/registry.py | tr -d '",')
[ -n "$modules" ] || { echo 'no MODULES in modules/registry.py' >&2; exit 1; }
for module in $modules; do
    keep "nats_$module" "$(dice)"
    keep "postgres_$module" "$(dice)"
    keep "database_url_$module" "postgresql://$module:$(cat "secrets/postgres_$module")@postgres:5432/$module"
done
{
    for user in $modules provisioner; do
        printf '%s_PASSWORD=%s\n' "$(printf %s "$user" | tr '[:lower:]' '[:upper:]')" "$(cat "secrets/nats_$user")"
    done
} >secrets/nats.env

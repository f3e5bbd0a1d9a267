#!/bin/sh
# Generate the secrets that deploy/compose.yaml and deploy/kubernetes need, in deploy/secrets (which git ignores).
# Existing files stay unchanged. The files are readable by every user, because the programs that read them run as other
# users; the folder is accessible to you only.
set -eu
cd "$(dirname "$0")"
umask 022
mkdir -p secrets
chmod 0700 secrets

# The first character is a letter: NATS reads a value that begins with a digit as a number.
random_secret() { printf 's%s' "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; }
write_once() { [ -s "secrets/$1" ] || printf '%s' "$2" >"secrets/$1"; }

write_once postgres_password "$(random_secret)"
write_once grafana_password "$(random_secret)"
write_once analytics_password "$(random_secret)"
write_once api_keys "operator:operator:$(random_secret)"
write_once module_key "$(random_secret)"
# The key of the processes among themselves. A file of keys from before gets it, too.
grep -q ':module:' secrets/api_keys || printf '\nprocesses:module:%s\n' "$(cat secrets/module_key)" >>secrets/api_keys
write_once nats_provisioner "$(random_secret)"
write_once nats_routes "$(random_secret)"
# The one list of modules.
modules=$(sed -n 's/^MODULES = (\(.*\))$/\1/p' ../modules/registry.py | tr -d '",')
[ -n "$modules" ] || { echo 'no MODULES in modules/registry.py' >&2; exit 1; }
for module in $modules; do
    write_once "nats_$module" "$(random_secret)"
    write_once "postgres_$module" "$(random_secret)"
    write_once "database_url_$module" "postgresql://$module:$(cat "secrets/postgres_$module")@postgres:5432/$module"
done
{
    for user in $modules provisioner; do
        printf '%s_PASSWORD=%s\n' "$(printf %s "$user" | tr '[:lower:]' '[:upper:]')" "$(cat "secrets/nats_$user")"
    done
    # The nodes' own network in compose.yaml, in which no other service is.
    printf 'ROUTES_PASSWORD=%s\n' "$(cat secrets/nats_routes)"
    for node in 0 1 2; do
        printf 'ROUTE_%s=nats-route://routes:%s@nats-%s.routes:6222\n' "$node" "$(cat secrets/nats_routes)" "$node"
    done
} >secrets/nats.env

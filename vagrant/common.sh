# Shared by the provisioning scripts, which source it: the launcher, the topology as variables,
# and the functions that use them. Every function may run again on a machine that is set up.
# shellcheck shell=sh
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

# The launcher installs what the gateway needs; asking for the version does only that.
"$root/gw" version >&2
eval "$(PYTHONPATH=$root "$root/.venv/bin/python" -m gateway.lab.topology --shell)"

# The value of the variable MACHINE_$2.
of_machine() { eval "echo \"\$$(echo "$1_$2" | tr '[:lower:]' '[:upper:]')\""; }

# The interface that has an IPv4 address.
interface_of() { ip -o -4 address show to "$1" | awk '{ print $2; exit }'; }

# IPv6 addresses beside the IPv4 ones that the machine has from its provider, and its routes.
configure() {
    for link in $(of_machine "$1" links); do
        ipv4=${link%%/*}
        ip address replace "${link##*,}" dev "$(interface_of "$ipv4")" nodad
    done
    for route in $(of_machine "$1" routes); do
        ip route replace "${route%%,*}" via "${route##*,}"
    done
}

# Runs the rest of the arguments as the service $1: under systemd, or in place of this script
# where the caller looks after it (FOREGROUND=1).
service() {
    name=$1
    shift
    [ -z "${FOREGROUND:-}" ] || exec "$@"
    systemctl stop "$name" 2>/dev/null || :
    systemd-run --quiet --unit "$name" --setenv "PYTHONPATH=$root" -- "$@"
}

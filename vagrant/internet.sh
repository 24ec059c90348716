#!/bin/sh
# The outside: the hosts that clients ask for, and the SOCKS servers.
. "$(dirname -- "$0")/common.sh"
configure internet
wan=$(interface_of "$INTERNET_WAN")
for address in $INTERNET_ADDRESSES; do
    ip address replace "$address" dev "$wan" nodad
done

# As a virtual machine it has a way to the real internet too, and lends it to the LAN.
uplink=$(ip -o -4 route show default | awk '{ print $5; exit }')
if [ -n "$uplink" ]; then
    sysctl -q -w net.ipv4.ip_forward=1
    nft -f - <<EOF
table ip lab_uplink
delete table ip lab_uplink
table ip lab_uplink {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "$uplink" masquerade
    }
}
EOF
fi

export PYTHONPATH="$root"
service lab-servers "$root/.venv/bin/python" -m gateway.lab.serve "$(mktemp -d)"

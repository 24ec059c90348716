#!/bin/sh
# The router: kids go out by one SOCKS server, the office by another one or directly.
. "$(dirname -- "$0")/common.sh"
configure router

config=${GATEWAY_CONFIG:-/etc/gateway/gateway.yaml}
list() { echo "$*" | sed 's/ /, /g'; }
mkdir -p "$(dirname "$config")"
cat >"$config" <<EOF
lan:
  interfaces: [$(interface_of "$ROUTER_OFFICE"), $(interface_of "$ROUTER_KIDS")]
  subnets:
    office: [$(list "$OFFICE_PREFIXES")]
    kids: [$(list "$KIDS_PREFIXES")]
outbounds:
  home: {type: socks5, server: $HOME_IPV4, port: $HOME_PORT}
  work:
    type: socks5
    server: $WORK_IPV4
    port: $WORK_PORT
    username: $WORK_USERNAME
    password: $WORK_PASSWORD
rules:
  - {destination: [$BLOCKED_IPV4, "$BLOCKED_IPV6"], to: reject}
  - {subnet: kids, to: home}
  - {subnet: office, destination: [$MIRROR_IPV4, "$MIRROR_IPV6"], to: direct}
  - {to: work}
EOF
"$root/gw" check --config "$config"
service gateway "$root/gw" run --config "$config"

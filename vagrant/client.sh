#!/bin/sh
# A LAN host ($1 is its name). It knows nothing of the gateway but that its default route is there.
. "$(dirname -- "$0")/common.sh"
configure "$1"

"""Rule sets on this machine: found, compiled once, fetched, and read again when they change."""

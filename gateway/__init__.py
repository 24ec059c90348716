"""gateway: a transparent LAN gateway. Netfilter diverts, Python decides, the kernel moves bytes."""

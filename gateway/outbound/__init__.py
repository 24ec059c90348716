"""Ways out: how a flow leaves this machine."""

"""What a flow's first bytes tell of it, without I/O: which protocol, and which name."""

"""A LAN in network namespaces: used by ``gateway demo``, ``gateway bench`` and the tests."""

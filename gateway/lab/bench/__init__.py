"""``gateway bench``: this gateway, plain forwarding and other proxies, measured side by side."""

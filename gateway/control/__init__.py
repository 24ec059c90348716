"""The control socket: an aiohttp API and its client."""

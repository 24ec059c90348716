"""Groups of outbounds as values: how members are, and which of them a flow takes."""

"""Networks that fail on purpose: proxies, relays, poolers that stall, and names that lead elsewhere."""

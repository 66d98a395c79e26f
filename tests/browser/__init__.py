"""plyr's page in a real Chromium, before the real service and a Postgres of its own."""

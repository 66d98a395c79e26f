"""Postgres servers as child processes: their programs, data directories, ports and start-up errors."""

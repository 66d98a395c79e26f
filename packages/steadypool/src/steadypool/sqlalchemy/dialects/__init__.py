"""SQLAlchemy's own dialects for asyncpg and psycopg, bounded in time and size."""

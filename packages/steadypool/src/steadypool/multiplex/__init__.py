"""Statement multiplexing: statements of many callers travel together over one or two connections.

No caller holds a connection there. `multiplexer` decides what goes where, `connection` is one connection while it is
shared, `request` one statement of one caller, `statement_stats` knows which statements are slow, `failures` names what
went wrong, and `eligibility` which texts are refused. Nothing is re-exported: `eligibility` works without psycopg.
"""

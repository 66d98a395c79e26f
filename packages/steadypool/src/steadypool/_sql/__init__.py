"""Reading SQL texts without a server: one lexer, and what is decided from its tokens."""

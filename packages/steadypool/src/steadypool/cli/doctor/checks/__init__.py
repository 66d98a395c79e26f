"""The checks, a module for each group; a function for each check."""

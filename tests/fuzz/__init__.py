"""Functions that take any bytes, and must hold what they promise of them; see `targets`."""

"""What the seed document names by path; nothing else moves in here."""

"""What the routes call, one noun a file. Services take a session and leave committing to their caller."""

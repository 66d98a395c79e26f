"""What a query costs by each way and library, measured side by side in one run."""

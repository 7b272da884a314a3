"""Side-by-side measurements; each prints the table that a page shows."""

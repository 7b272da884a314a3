"""Data that ships with us: spoken digits, and the script that made them."""

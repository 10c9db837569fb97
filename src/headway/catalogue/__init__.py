"""What ``headway methods`` shows: every method as text, as a page, and its curves."""

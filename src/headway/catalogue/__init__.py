"""What ``headway methods`` knows: every method as text, as a page, and its curves."""

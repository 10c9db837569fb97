"""Views drawn for print."""

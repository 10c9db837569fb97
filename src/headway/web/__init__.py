"""Pages: figures drawn in a browser, as one HTML file or in the studio."""

"""The page of results: one HTML file, from the committed results alone."""

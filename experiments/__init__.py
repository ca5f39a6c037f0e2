"""One script for each table and figure; see README.md in this folder."""

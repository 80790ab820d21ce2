"""Data of others, in this product's format: a module for each layout."""

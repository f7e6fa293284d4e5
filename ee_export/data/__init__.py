"""Input: pages, words, data sets, and their encoding as arrays."""

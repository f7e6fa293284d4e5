"""What comes in: pages, words, data sets, and the arrays that they become."""

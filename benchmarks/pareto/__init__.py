"""A study of many models and policies on one data set, as in a paper: accuracy against measured cost."""

"""Segments, decisions and chains on an NVIDIA GPU. Nothing here imports CUDA before it runs on a GPU."""

"""Segments, decisions and chains on an NVIDIA GPU; nothing here imports CUDA until it is asked to run there."""

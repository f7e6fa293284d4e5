"""`ee-export doctor`: what this machine can run, what is missing for more and how to get it, and, with --gpu, the proof."""

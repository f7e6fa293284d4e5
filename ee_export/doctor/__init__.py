"""`ee-export doctor`: the targets that this machine can run, the remedies for those it cannot, and a trial of its GPU."""

"""`ee-export doctor`: targets that this machine can run, remedies for the others, and a trial of its GPU."""

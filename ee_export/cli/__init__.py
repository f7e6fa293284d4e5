"""The command `ee-export`."""

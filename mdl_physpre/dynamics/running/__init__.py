"""Many structures simulated together: the steps, the state that is stored, the files."""

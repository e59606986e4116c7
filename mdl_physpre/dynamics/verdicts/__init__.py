"""What is watched in dynamics, and what follows from it."""

"""What moves atoms: integrators, neighbour lists, forces."""

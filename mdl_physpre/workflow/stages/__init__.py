"""The stages of a run, in the order of the method: EAM or teacher, pretraining set, training, errors, dynamics."""

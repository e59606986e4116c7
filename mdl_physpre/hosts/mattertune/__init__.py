"""MatterTune: our M3GNet as a backbone, pretraining data as a data source, and a command line."""

"""Runs on a SLURM cluster: a sweep is frozen in a manifest, submitted as one job array, and followed from its files."""

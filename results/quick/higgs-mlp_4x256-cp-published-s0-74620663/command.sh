#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=higgs model=mlp_4x256 method=cp seed=0 preset=quick dataset.subset=yes

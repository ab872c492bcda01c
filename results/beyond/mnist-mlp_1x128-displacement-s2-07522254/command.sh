#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=mnist model=mlp_1x128 method=displacement seed=2 preset=beyond

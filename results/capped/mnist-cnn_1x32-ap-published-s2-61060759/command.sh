#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=mnist model=cnn_1x32 method=ap seed=2 preset=capped

#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=mnist model=mlp_4x128_skip method=displacement method.target_scale=0.001 method.gain=element method.transform=sgd seed=0 preset=study

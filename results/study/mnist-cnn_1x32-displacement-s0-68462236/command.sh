#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=mnist model=cnn_1x32 method=displacement method.target_scale=0.001 method.gain=fan_out method.transform=sgd seed=0 preset=study

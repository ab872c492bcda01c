#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=shakespeare model=rnn_1x256 method=dr seed=0 preset=capped engine=exact

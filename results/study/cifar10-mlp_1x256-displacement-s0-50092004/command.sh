#!/bin/sh
# From the repository's root, in the environment of `make setup`.
python -m experiments.run dataset=cifar10 dataset.altered=True model=mlp_1x256 method=displacement method.transform=adam method.target_scale=0.03 seed=0 preset=study method.gain=node

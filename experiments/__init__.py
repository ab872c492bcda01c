"""The harness: configuration, data, the training loop, records and the command line of the paper's experiments."""

"""Tables and figures from the records under ``results/``; reads nothing else and imports no engine and no harness."""

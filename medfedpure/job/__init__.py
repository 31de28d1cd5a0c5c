"""One run: from a configuration to federated, defended, attacked and measured classifiers."""

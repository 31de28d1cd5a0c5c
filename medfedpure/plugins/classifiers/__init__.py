"""Built-in classifiers, one file each."""

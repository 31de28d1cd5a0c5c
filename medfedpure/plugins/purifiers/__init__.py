"""Built-in purifiers, one file each."""

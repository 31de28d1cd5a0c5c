"""Built-in personalization strategies, one file each."""

"""Networks that more than one plugin uses."""

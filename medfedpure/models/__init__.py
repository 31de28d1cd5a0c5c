"""Networks that more than one plugin uses, and the only door to timm and diffusers."""

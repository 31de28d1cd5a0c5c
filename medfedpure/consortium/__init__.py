"""A real federation's folder: what each hospital receives, its keys, and the apps that run there."""

"""The defence: a classifier guarded by a detector and a purifier; from fitting to a verdict, saved and watched."""

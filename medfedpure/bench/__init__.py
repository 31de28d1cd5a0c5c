"""What `medfedpure bench` does: plugins of one kind side by side on drawn images."""

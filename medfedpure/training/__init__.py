"""Training: the one loop, its state, batches and steps, and the tasks that every classifier learns."""

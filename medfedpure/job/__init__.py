"""The main job: from images to a federated, defended, attacked and measured classifier."""

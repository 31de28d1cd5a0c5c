"""The service: a saved defence behind HTTP, with limits, a queue, a log that shows tampering, and a page."""

"""What leaves for other runtimes: one file of one fixed computation, its facts inside, checked before it is kept."""

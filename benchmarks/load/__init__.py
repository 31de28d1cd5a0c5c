"""Parts of `python -m benchmarks.serve_load`: the service under load, what is sent to it, and what is heard."""

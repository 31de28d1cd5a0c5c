"""The study: what the defence is worth, on images without twins in training, against who knows everything.

`python -m benchmarks.study` plans and runs it, `python -m benchmarks.study.page` draws its page.
"""

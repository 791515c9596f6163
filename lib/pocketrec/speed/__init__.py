"""How fast lookups and training steps are, beside the rivals of each, measured so that others can believe it.

`machine` makes the machine steady and finds its limits, `contestants` are our methods and torch's ways, `rivals` come
from elsewhere, `bench` times all of them in turn, and `dlrm` the whole model around them.
"""

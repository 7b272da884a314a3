"""``mst-edge compare``: methods x seeds, each trained in a process of its own, in one table."""

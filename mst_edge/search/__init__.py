"""``mst-edge search``: which student to train, chosen before it is trained."""

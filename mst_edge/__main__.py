"""``python -m mst_edge``."""

from mst_edge.cli.app import main

if __name__ == "__main__":
    main()

"""The leaf of the import graph: errors, files, hashing, statistics. Standard library and numpy only."""

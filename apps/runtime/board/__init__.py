"""What a bundle does on a board that it was not built on: compile, check, measure. Standard library and numpy only."""

"""Datasets, networks, tasks, distillation methods and the training loop."""

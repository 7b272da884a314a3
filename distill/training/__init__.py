"""The training loop: features kept on disk, phases that resume exactly, teacher logits computed once."""

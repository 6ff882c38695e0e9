"""The coordinator: opens rounds, folds updates, keeps the global tensors."""

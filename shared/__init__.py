"""The contract between the two programs: messages, tensors, algorithms, pruning, the link."""

"""What operators are told besides the weights: activations, Fisher information, Adam's moments.

`collection` has the one entry point. Each expert is run over unlabeled text once; what is found is
kept in the cache, one folder per expert and kind (`kept`), and read tensor by tensor.
"""

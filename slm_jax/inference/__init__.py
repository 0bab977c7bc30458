"""What answers: a model from its directory, questions into batches, long audio in pieces."""

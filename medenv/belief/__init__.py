"""The posterior over conditions and the expected information gain of a question."""

"""A consultation in words: how questions, answers and diagnoses are said, and how they are understood."""

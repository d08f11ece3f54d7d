"""Rewards: what a turn of a consultation was worth.

Does not cover: who computes the belief that a reward reads (`medenv.belief`).
"""

if __name__ != "medenv.rewards":
    raise ImportError(f"medenv's rewards were imported as {__name__!r}, through a link in its repository: write `import medenv.rewards`")

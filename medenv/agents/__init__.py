"""Doctors: agents that ask, diagnose and refer, and how they are trained.

Does not cover: running them over many cases (`medenv.runs`).
"""

if __name__ != "medenv.agents":
    raise ImportError(f"medenv's doctors were imported as {__name__!r}, through a link in its repository: write `import medenv.agents`")

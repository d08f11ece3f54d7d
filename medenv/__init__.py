"""medenv: reinforcement-learning environments for medical consultations.

`import gymnasium as gym, medenv; env = gym.make("MedConsult-v0")`. Importing registers the environments and loads nothing heavy.
A research simulator: not medical advice, not for use with patients.
"""

from medenv.envs.registration import register_environments

__version__ = "0.0.1"
__all__ = ["__version__"]

register_environments()

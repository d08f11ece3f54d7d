"""Who answers, and in which words."""

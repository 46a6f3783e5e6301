"""What the tool gains on networks as the field exports them: ``python -m tools.coverage``."""

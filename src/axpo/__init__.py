"""Train vision-language agents to use tools with Agent eXplorative Policy Optimization."""

__version__ = "0.1.0"

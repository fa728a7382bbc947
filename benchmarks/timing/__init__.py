"""How long a call takes: calls timed in turns, scenarios, what the numbers are worth."""

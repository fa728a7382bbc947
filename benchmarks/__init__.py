"""Measures a session: latency and accuracy, with the facts about the machine it ran on."""

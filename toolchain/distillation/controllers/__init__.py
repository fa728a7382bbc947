"""How much: who sets the strength of each supervision term, step by step."""

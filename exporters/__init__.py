"""Converts: from a torch module to the file that a runtime loads, and checks that both agree."""

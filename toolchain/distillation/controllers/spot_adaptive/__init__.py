"""SAKD: for every sample, a policy decides at which spots the student is still taught."""

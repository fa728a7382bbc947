"""Is the exported model still the model?"""

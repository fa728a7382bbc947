"""Whose signal a student follows: the teachers that a recipe can name under ``distil.teachers``."""

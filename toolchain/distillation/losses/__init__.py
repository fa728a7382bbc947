"""Distillation losses: what is compared between a student's tensor and a teacher's."""

"""Figures as plain values, and their words."""

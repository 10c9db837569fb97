"""Figures as plain values, and the words they are said in."""

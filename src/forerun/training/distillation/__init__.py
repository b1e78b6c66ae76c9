"""Distil a small draft from a target's own text."""

"""Vocabulary and mechanisms shared by Hushtune's processes."""

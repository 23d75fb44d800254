"""A run as one page for people: what came out, what it rests on, and how to do it again."""

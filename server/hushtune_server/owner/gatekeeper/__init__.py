"""Which updates does the owner refuse, and why?"""

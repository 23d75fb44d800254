"""Whose copy of an emulator is this?"""

"""What can a client who cheats make of the emulator that it was given?"""

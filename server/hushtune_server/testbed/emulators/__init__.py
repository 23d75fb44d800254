"""The honest comparison of emulators: what each method's emulator is worth, and to whom, at what size."""

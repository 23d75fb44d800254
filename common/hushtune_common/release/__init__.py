"""Signed bundles: an emulator going out, or a sealed adapter coming home, as one file that says what it is and who says so."""

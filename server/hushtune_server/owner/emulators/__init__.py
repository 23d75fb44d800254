"""Methods that turn a model into an emulator."""

"""What survives a restart: journals and blobs."""

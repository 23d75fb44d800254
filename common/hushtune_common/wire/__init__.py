"""How the processes talk: gRPC over mTLS."""

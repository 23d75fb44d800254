"""What does a plug-in lose for the bytes that an adapter may have on its way home? Ours and peers, in the same run."""

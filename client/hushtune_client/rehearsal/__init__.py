"""What does a coordinator bear? Many clients in one process that keep the protocol, and train and send nothing."""

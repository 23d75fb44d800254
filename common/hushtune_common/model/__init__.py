"""Language models, split into adapter blocks and middle."""

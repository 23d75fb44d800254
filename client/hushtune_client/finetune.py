"""What the client's training process runs; importing it loads torch."""

from hushtune_common.model.finetune import Progress, finetune

__all__ = ["Progress", "finetune"]

"""What may a process log? Every event with its fields; a new one is one more entry in the file of the process that logs it."""

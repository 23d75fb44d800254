"""What is an update worth to the owner by the share of its bytes? Measured on public text before any client sends one."""

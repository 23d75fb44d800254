"""The link's own workbench: its designs, its block error tables, its speed."""

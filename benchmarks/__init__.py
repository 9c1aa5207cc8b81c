"""What is measured, and what measures it: README.md."""

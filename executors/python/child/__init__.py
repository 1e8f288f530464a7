"""What runs inside the child process. Standard library only: it starts without site-packages."""

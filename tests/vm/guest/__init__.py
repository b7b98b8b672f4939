"""What runs inside the guest: the shell scripts that bring it up, the runner, a pytest plugin."""

"""What runs inside the sandbox: standard library only, sent there as compiled code, never as files."""

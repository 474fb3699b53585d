"""The checkpoint protocol: its effects, and recovery, which reads them back."""

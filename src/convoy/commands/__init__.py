"""The words of `convoy`, one file each, and how a command shows progress and tables."""

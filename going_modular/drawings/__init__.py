"""Food that is drawn by a program, in place of photos."""
